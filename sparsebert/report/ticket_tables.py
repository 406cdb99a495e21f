"""Tables of tickets that were pruned without training, and of what was converted."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from sparsebert.report.table import Table
from sparsebert.report.wording import MISSING, Record, granularity_text, mean_and_verdict

_TAKES = {
    "disk": "weights on disk",
    "weights": "weights in memory",
    "activations": "activations, batch {batch}, {length} tokens",
}


def ticket_tables(records: Iterable[Record]) -> list[Table]:
    """Tickets that `prune` wrote, files that `convert` wrote, and what converted models take."""
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
    columns = ("file", "model", "method", "pruned", "task", "seed", "sparsity", "density", "MB")
    rows = tuple(
        (
            row["output"],
            row["model"],
            row["method"],
            granularity_text(row["ticket"]),
            row["task"] or MISSING,
            str(row["seed"]),
            f"{row['ticket']['sparsity']:.2%}",
            f"{row['ticket']['density']:.2%}",
            f"{row['bytes'] / 1e6:.1f}",
        )
        for row in pruned
    )
    notes = []
    for row in overlaps:
        seeds = ", ".join(map(str, row["seeds"]))
        notes.append(f"{row['method']}, seeds {seeds}: {overlap_text(row)}")
    return Table("Tickets pruned without training", columns, rows, tuple(notes))


def _converted_table(converted: Sequence[Record]) -> Table:
    rows = tuple(
        (
            row["output"],
            row["source"],
            row["to"],
            str(row["ticket"]["matrices"]),
            f"{row['ticket']['sparsity']:.2%}",
            f"{row['ticket']['density']:.2%}",
        )
        for row in converted
    )
    return Table("Converted", ("file", "from", "to", "matrices", "sparsity", "density"), rows)


def footprint_table(row: Record) -> Table:
    """What a converted model takes on disk and in memory, from its "convert" record."""
    before, after = row["before"], row["after"]
    rows = tuple(
        (
            name.format_map(before),
            _megabytes(before[field]),
            _megabytes(after[field]),
            f"{after[field] / before[field]:.2f}x" if before[field] else MISSING,
        )
        for field, name in _TAKES.items()
    )
    return Table(f"What {row['output']} takes", ("MB", "before", "after", "ratio"), rows)


def overlap_text(row: Record) -> str:
    """How much two seeds' tickets have in common, from a "prune_seeds" record."""
    return f"overlap of two of them (Jaccard index): {mean_and_verdict(row)}"


def _megabytes(count: int | None) -> str:
    return MISSING if count is None else f"{count / 1e6:.2f}"
