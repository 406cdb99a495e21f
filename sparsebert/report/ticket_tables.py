"""Tables of tickets pruned without training, and of conversions."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from operator import itemgetter

from sparsebert.report.format import MISSING, Record, granularity_text, mean_and_verdict, megabytes
from sparsebert.report.table import Cell, Table

_FOOTPRINTS = {
    "disk": "weights on disk",
    "weights": "weights in memory",
    "activations": "activations, batch {batch}, {length} tokens",
}
_SHARES: dict[str, Cell] = {
    "sparsity": lambda row: f"{row['ticket']['sparsity']:.2%}",
    "density": lambda row: f"{row['ticket']['density']:.2%}",
}


def ticket_tables(records: Iterable[Record]) -> list[Table]:
    """Return the tables of pruned tickets, of conversions, and of the size of converted models."""
    records = list(records)
    pruned = [row for row in records if row["kind"] == "prune"]
    overlaps = [row for row in records if row["kind"] == "prune_seeds"]
    converted = [row for row in records if row["kind"] == "convert"]
    return [
        *([_pruned_table(pruned, overlaps)] if pruned else []),
        *([_converted_table(converted)] if converted else []),
        *(footprint_table(row) for row in converted if "before" in row),
    ]


def _pruned_table(pruned: Sequence[Record], overlaps: Sequence[Record]) -> Table:
    columns: dict[str, Cell] = {
        "file": itemgetter("output"),
        "model": itemgetter("model"),
        "method": itemgetter("method"),
        "pruned": lambda row: granularity_text(row["ticket"]),
        "task": lambda row: row["task"] or MISSING,
        "seed": lambda row: str(row["seed"]),
        **_SHARES,
        # Missing in earlier records of one-shot methods.
        "MB": lambda row: megabytes(row.get("bytes")),
    }
    notes = [
        f"{row['method']}, seeds {', '.join(map(str, row['seeds']))}: {overlap_text(row)}" for row in overlaps
    ]
    return Table.of("Tickets pruned without training", columns, pruned, notes)


def _converted_table(converted: Sequence[Record]) -> Table:
    columns: dict[str, Cell] = {
        "file": itemgetter("output"),
        "from": itemgetter("source"),
        "to": itemgetter("to"),
        "matrices": lambda row: str(row["ticket"]["matrices"]),
        **_SHARES,
    }
    return Table.of("Converted", columns, converted)


def footprint_table(row: Record) -> Table:
    """Return the size of a converted model on disk and in memory, from its "convert" record."""
    before, after = row["before"], row["after"]
    rows = tuple(
        (
            name.format_map(before),
            _megabytes(before[field]),
            _megabytes(after[field]),
            f"{after[field] / before[field]:.2f}x" if before[field] else MISSING,
        )
        for field, name in _FOOTPRINTS.items()
    )
    return Table(f"What {row['output']} takes", ("MB", "before", "after", "ratio"), rows)


def overlap_text(row: Record) -> str:
    """Return the overlap of two seeds' tickets in words, from a "prune_seeds" record."""
    return f"overlap of two of them (Jaccard index): {mean_and_verdict(row)}"


def _megabytes(count: int | None) -> str:
    return MISSING if count is None else f"{count / 1e6:.2f}"
