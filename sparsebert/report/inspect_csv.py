"""The figures behind the tables and pictures of tickets as CSV, a line for each figure."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence

from sparsebert.report.csv_text import csv_text
from sparsebert.report.format import Record
from sparsebert.report.inspect_tables import PARTS, overlap_pairs
from sparsebert.report.ticket_labels import differences
from sparsebert.tickets.kept_weights import KeptWeights
from sparsebert.tickets.survivors import Survivors

Row = Sequence[object]
# Files that are not named by their part.
_PART_OF = {"blocks.csv": "masks"}


def csv_files(records: Iterable[Record], show: Collection[str] = PARTS) -> dict[str, str]:
    """Return the content of each file by its name; a file without lines is left out.

    Shares are between 0 and 1. ``blocks.csv`` has a line for each row of blocks, their counts in one cell.
    """
    records = list(records)
    files: dict[str, tuple[Row, Callable[[Record], Iterator[Row]], str]] = {
        "density.csv": (
            (
                "ticket",
                "matrix",
                "layer",
                "type",
                "rows",
                "columns",
                "kept",
                "density",
                "live_rows",
                "live_columns",
            ),
            _matrices,
            "inspect",
        ),
        "heads.csv": (("ticket", "layer", "head", "type", "weights", "kept", "density"), _heads, "inspect"),
        "blocks.csv": (("ticket", "matrix", "block", "first_row", "kept"), _blocks, "inspect"),
        "survivors.csv": (
            ("group", "layer", "unit", "tickets", "survives", "density_mean", "density_std"),
            _survivors,
            "inspect_survivors",
        ),
        "overlap.csv": (("ticket", "other", "differ_in", "jaccard", "chance"), _overlaps, "inspect_overlap"),
    }
    made = {}
    for name, (columns, lines, kind) in files.items():
        if _PART_OF.get(name, name.removesuffix(".csv")) not in show:
            continue
        rows = [line for record in records if record["kind"] == kind for line in lines(record)]
        if rows:
            made[name] = csv_text([columns, *rows])
    return made


def _matrices(row: Record) -> Iterator[Row]:
    for each in KeptWeights.of_record(row).matrices:
        shape, live = (each.rows, each.columns), (each.live_rows, each.live_columns)
        yield (
            row["name"],
            each.key,
            each.layer,
            each.type,
            *shape,
            each.kept,
            each.kept / each.weights,
            *live,
        )


def _heads(row: Record) -> Iterator[Row]:
    heads = KeptWeights.of_record(row).heads
    if heads is None:
        return
    for kind, kept in heads.kept.items():
        weights = heads.weights[kind]
        for layer, counts in zip(heads.layers, kept, strict=True):
            for head, count in enumerate(counts or ()):
                yield row["name"], layer, head, kind, weights, count, count / weights


def _blocks(row: Record) -> Iterator[Row]:
    for key, counts in KeptWeights.of_record(row).blocks.items():
        for number, line in enumerate(counts.tolist()):
            yield row["name"], key, row["block"], number * row["block"], " ".join(map(str, line))


def _survivors(row: Record) -> Iterator[Row]:
    survivors = Survivors.of_record(row)
    for i, layer in enumerate(survivors.layers):
        common = row["group"], layer
        for head in range(survivors.heads.shape[1]):
            figures = survivors.heads[i, head], survivors.head_density[i, head], survivors.head_std[i, head]
            yield *common, f"head {head}", survivors.tickets, *figures
        figures = survivors.mlps[i], survivors.mlp_density[i], survivors.mlp_std[i]
        yield *common, "MLP", survivors.tickets, *figures


def _overlaps(row: Record) -> Iterator[Row]:
    for one, other, jaccard, chance in overlap_pairs(row):
        yield one.name, other.name, " ".join(differences(one, other)), jaccard, chance
