"""Tables of the cost of training: parameters, memory of a step, and bytes to store for a task."""

from __future__ import annotations

from collections.abc import Iterable

from sparsebert.report.format import Record, machine_text
from sparsebert.report.table import Table

_COLUMNS = ("method", "trained parameters", "between steps", "peak of a step", "kept for a task")


def memory_tables(records: Iterable[Record]) -> list[Table]:
    """Return a table for each part of a model, with the latest measurement of each method."""
    parts: dict[str, dict[str, Record]] = {}
    for row in records:
        if row["kind"] == "memory":
            parts.setdefault(row["part"], {})[row["side"]] = row
    return [_table(part, sides) for part, sides in parts.items()]


def _table(part: str, sides: dict[str, Record]) -> Table:
    rows = tuple(
        (
            side,
            f"{row['trained'] / 1e6:.1f} M",
            _megabytes(row["held_bytes"]),
            _megabytes(row["peak_bytes"]),
            _megabytes(row["kept_bytes"]),
        )
        for side, row in sides.items()
    )
    first = next(iter(sides.values()))
    notes = (
        f"{machine_text(first['environment'])}. Density {first['density']:.0%}, batch {first['batch']}, "
        f"{first['tokens']} tokens, float32, AdamW. Memory: resident bytes of the process, minus those "
        "before the model was built; between steps: weights, scores, masks and moments; "
        "kept for a task: the ticket's file and the trained weights that it keeps.",
    )
    return Table(f"Training memory, {part}", _COLUMNS, rows, notes)


def _megabytes(count: int) -> str:
    return f"{count / 1e6:,.1f} MB" if count < 1e8 else f"{count / 1e6:,.0f} MB"
