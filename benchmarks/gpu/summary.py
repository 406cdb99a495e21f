"""The summary of a call: tables, and a plot of achieved against possible speed."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.gpu.session import Session
from sparsebert.atomic import write_text
from sparsebert.report.gpu_plots import roofline_plot
from sparsebert.report.gpu_tables import failure_tables, gpu_tables
from sparsebert.results import Record

WARNING = "**DRY RUN on the CPU: nothing here was measured, every figure is meaningless.**"


def write_summary(session: Session) -> None:
    """Write gpu.md and, with matplotlib, gpu.png to the folder of the records."""
    records = session.records()
    text = summary(records, missing=len(session.missing()), dry_run=session.dry_run)
    write_text(session.folder / "gpu.md", text)
    try:
        roofline_plot(records, session.folder / "gpu.png", dry_run=session.dry_run)
    except ValueError as reason:
        print(f"no picture: {reason}")


def summary(records: Sequence[Record], *, missing: int, dry_run: bool) -> str:
    """Return all tables, the failures, and the excluded sides."""
    parts = ["# Measured on a GPU", *([WARNING] if dry_run else [])]
    parts += [table.markdown() for table in gpu_tables(records, dry_run=dry_run)]
    parts += [table.markdown() for table in failure_tables(records, dry_run=dry_run)]
    notes: dict[str, int] = {}
    for row in records:
        for side, reason in row.get("notes", {}).items():
            notes[f"{side}: {reason}"] = notes.get(f"{side}: {reason}", 0) + 1
    if notes:
        lines = [f"- {note} ({count} times)" for note, count in notes.items()]
        parts.append("\n".join(["**Left out**", "", *lines]))
    parts.append(f"{missing} points are missing.")
    return "\n\n".join(parts) + "\n"
