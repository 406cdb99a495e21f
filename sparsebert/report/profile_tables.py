"""Tables and pictures of profiles: where the time of a batch goes, from "profile" records."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from sparsebert.report.format import (
    BUSY_NOTE,
    Record,
    granularity_text,
    machine_text,
    tolerance_text,
    workload_title,
)
from sparsebert.report.picture import Picture
from sparsebert.report.plots import HATCHES, new_figure
from sparsebert.report.table import Table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NAMES = {
    "qkv": "query, key, value",
    "output": "attention output",
    "up": "up and activation",
    "down": "down",
    "attention": "attention",
    "norm": "norms",
    "layout": "layout",
    "embeddings": "embeddings",
    "pooler": "pooler",
    "python": "Python",
}
# Linear layers in blues, the rest in other colours (Okabe and Ito, and shades).
COLOURS = {
    "qkv": "#08519c",
    "output": "#3182bd",
    "up": "#6baed6",
    "down": "#bdd7e7",
    "attention": "#D55E00",
    "norm": "#009E73",
    "layout": "#F0E442",
    "embeddings": "#CC79A7",
    "pooler": "#E69F00",
    "python": "#999999",
}

# Of neighbours in a bar, so that they differ without colour.
_HATCHES = {part: HATCHES[number % len(HATCHES)] for number, part in enumerate(NAMES)}


def profile_tables(records: Iterable[Record]) -> list[Table]:
    """Return a table for each workload and ticket, with a row for each side."""
    return [_table(rows) for rows in _profiles(records)]


def profile_pictures(records: Iterable[Record]) -> list[Picture]:
    """Return a stacked bar for each side of each workload and ticket."""
    return [
        Picture(
            _title(rows[0]),
            f"{_title(rows[0])}. Stacked bars of the milliseconds of a batch: {_message(rows)}.",
            functools.partial(profile_figure, rows),
            f"{machine_text(rows[0]['environment'])}. Medians of {rows[0]['rounds']} rounds."
            + (f" {BUSY_NOTE}" if any(row["busy"] for row in rows) else ""),
            _numbers(rows),
        )
        for rows in _profiles(records)
    ]


def profile_figure(records: Sequence[Record]) -> Figure:
    """Return a stacked bar of milliseconds for each side of one profile.

    Args:
        records: The "profile" records of one workload and ticket.

    Raises:
        ValueError: There are no records, or matplotlib is not installed.
    """
    if not records:
        raise ValueError("nothing to plot: there are no profile records")
    figure, axes = new_figure()
    sides = [row["side"] for row in records]
    starts = [0.0] * len(records)
    for part in _present(records):
        widths = [max(0.0, row["parts_ms"].get(part, 0.0)) for row in records]
        axes.barh(
            sides,
            widths,
            left=starts,
            height=0.6,
            color=COLOURS[part],
            hatch=_HATCHES[part],
            edgecolor="white",
            linewidth=0.5,
            label=NAMES[part],
        )
        starts = [start + width for start, width in zip(starts, widths, strict=True)]
    for row, end in zip(records, starts, strict=True):
        axes.annotate(f" {end:.1f} ms", (end, row["side"]), va="center")
    axes.invert_yaxis()
    axes.set_xlim(0, 1.12 * max(starts))
    axes.set_xlabel("milliseconds a batch")
    axes.set_title(_title(records[0]).replace("-sparse, ", "-sparse\n"), loc="left", fontsize=10)
    axes.legend(frameon=False, ncols=5, fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.12))
    note = machine_text(records[0]["environment"])
    if any(row["busy"] for row in records):
        note += "\nTHE MACHINE WAS TOO BUSY: do not quote"
    figure.supxlabel(note, fontsize=7, color="0.35", x=0.01, ha="left")
    return figure


def _profiles(records: Iterable[Record]) -> list[list[Record]]:
    """Return the latest record of each side, by workload and ticket."""
    profiles: dict[tuple[str, ...], dict[str, Record]] = {}
    for row in records:
        if row["kind"] == "profile":
            key = (
                repr(sorted(row["workload"].items(), key=str)),
                repr(sorted(row["ticket"].items(), key=str)),
                tolerance_text(row),
            )
            profiles.setdefault(key, {})[row["side"]] = row
    return [list(sides.values()) for sides in profiles.values()]


def _present(records: Sequence[Record]) -> list[str]:
    """Return the parts that take time on some side."""
    return [part for part in NAMES if any(row["parts_ms"].get(part, 0.0) >= 5e-4 for row in records)]


def _title(record: Record) -> str:
    ticket = record["ticket"]
    return (
        f"Where the time goes: {ticket['sparsity']:.1%} {granularity_text(ticket)}-sparse, "
        f"{workload_title(record['workload'])}{tolerance_text(record)}"
    )


def _message(rows: Sequence[Record]) -> str:
    """Return the whole of each side with its largest part, in words."""
    texts = []
    for row in rows:
        times = row["parts_ms"]
        total, largest = sum(times.values()), max(times, key=times.__getitem__)
        share = _share(times[largest], total)
        texts.append(
            f"{row['side']} {total:.1f} ms, most of it {NAMES[largest]} ({times[largest]:.1f} ms, {share})"
        )
    return "; ".join(texts)


def _numbers(rows: Sequence[Record]) -> Table:
    columns = ("side", "part", "milliseconds", "busy")
    lines = tuple(
        (row["side"], NAMES[part], f"{row['parts_ms'].get(part, 0.0):.6g}", str(row["busy"]).lower())
        for row in rows
        for part in _present(rows)
    )
    return Table("", columns, lines)


def _table(rows: Sequence[Record]) -> Table:
    parts = _present(rows)
    cells = []
    for row in rows:
        times = row["parts_ms"]
        total = sum(times.values())
        doubt = "?" if row["busy"] else ""
        cells.append(
            (
                row["side"],
                f"{total:.2f}{doubt}",
                *(f"{times.get(part, 0.0):.2f} ({_share(times.get(part, 0.0), total)})" for part in parts),
            )
        )
    notes = [
        f"{machine_text(rows[0]['environment'])}. Milliseconds of a batch, and their share of the whole: "
        f"medians of {rows[0]['rounds']} rounds; layout: to and from the layout of the kernels; Python: what "
        "remains of the model's call."
    ]
    if not all("ceilings" in row for row in rows):
        notes.append("No roofline: an earlier version wrote these records, without FLOP and ceilings.")
    if any(row["busy"] for row in rows):
        notes.append(BUSY_NOTE)
    return Table(
        _title(rows[0]), ("side", "ms a batch", *(NAMES[part] for part in parts)), tuple(cells), tuple(notes)
    )


def _share(part: float, total: float) -> str:
    return f"{part / total:.0%}" if total else "-"
