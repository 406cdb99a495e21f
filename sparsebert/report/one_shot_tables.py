"""Tables of one-shot pruning."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from statistics import mean, median, pstdev

from sparsebert.linear_layers import type_of
from sparsebert.report.format import Record, machine_text
from sparsebert.report.table import Cell, Table

Group = Sequence[Record]

_EMBEDDINGS_NOTE = (
    "cosine: mean cosine to the dense model's embeddings on unseen sentences of SST-2 and MRPC; AUC: area "
    "under the ROC curve of the cosine between the sentences of MRPC's pairs. A matrix reproduces outputs of "
    "the dense model (dense), or its own on the pruned model's inputs, as published (layer). Sparsity is "
    "allocated by error, or uniform as published"
)


def error_table(errors: Mapping[str, float]) -> Table:
    """Return the table of what pruning has cost, by kind of matrix.

    Args:
        errors: Key of a matrix -> share of its outputs' energy that is lost.
    """
    kinds: dict[str, list[float]] = defaultdict(list)
    for key, error in errors.items():
        kinds[type_of(key)].append(error)
    rows = [
        (kind, str(len(shares)), f"{median(shares):.1%}", f"{max(shares):.1%}")
        for kind, shares in kinds.items()
    ]
    return Table(
        "Outputs lost on the calibration texts (share of their energy)",
        ("matrix", "count", "median", "highest"),
        tuple(rows),
    )


def one_shot_tables(records: Iterable[Record]) -> list[Table]:
    """Return the tables of ``benchmarks.one_shot``, one for each part; sets of texts share a row."""
    parts: dict[str, list[Record]] = defaultdict(list)
    for row in records:
        if row["kind"] == "one_shot":
            parts[row["part"]].append(row)
    tables = []
    costs = [row for part, rows in parts.items() if part.startswith("cost of ") for row in rows]
    for part, (title, columns, note) in _PARTS.items():
        rows = costs if part == "cost" else parts.get(part, [])
        if rows:
            notes = [note, machine_text(rows[0]["environment"])]
            tables.append(Table.of(title, columns, _groups(rows), [text for text in notes if text]))
    return tables


_CASE_FIELDS = ("part", "method", "granularity", "sparsity", "reproduce", "allocate")


def _groups(rows: Sequence[Record]) -> list[dict[str, Group]]:
    """Return the records of each case, in the order of their first record."""
    cases: dict[tuple[object, ...], list[Record]] = defaultdict(list)
    for row in rows:
        cases[tuple(row[name] for name in _CASE_FIELDS)].append(row)
    return [{"rows": group} for group in cases.values()]


def _first(cell: Callable[[Record], str]) -> Cell:
    return lambda group: cell(group["rows"][0])


def _spread(value: Callable[[Record], float], format: str = ".3f") -> Cell:
    """Return a cell with the mean over the sets and, of several, the standard deviation."""

    def cell(group: Record) -> str:
        values = [value(row) for row in group["rows"]]
        spread = f" ± {pstdev(values):{format}}" if len(values) > 1 else ""
        return f"{mean(values):{format}}{spread}"

    return cell


def _of_healed(cell: Callable[[Record], str]) -> Cell:
    return lambda group: next((cell(row["healed"]) for row in group["rows"] if "healed" in row), "–")


_CASE: dict[str, Cell] = {
    "method": _first(lambda row: row["method"]),
    "reproduces": _first(lambda row: row["reproduce"] or "–"),
    "allocates": _first(lambda row: row["allocate"] or "–"),
    "granularity": _first(lambda row: row["granularity"] or "–"),
    "sparsity": _first(lambda row: f"{row['sparsity']:.0%}"),
}
_SETS: dict[str, Cell] = {"sets": lambda group: str(len(group["rows"]))}
_PARTS: dict[str, tuple[str, dict[str, Cell], str]] = {
    "embeddings": (
        "One-shot pruning of MiniLM, without training",
        {
            **_CASE,
            "cosine": _spread(lambda row: row["cosine"]),
            "AUC": _spread(lambda row: row["auc"]),
            **_SETS,
        },
        _EMBEDDINGS_NOTE,
    ),
    "healed": (
        "MiniLM, pruned once and healed without labels",
        {
            **_CASE,
            "cosine before": _spread(lambda row: row["before"]["cosine"]),
            "after": _spread(lambda row: row["cosine"]),
            "AUC before": _spread(lambda row: row["before"]["auc"]),
            "AUC after": _spread(lambda row: row["auc"]),
            "minutes": _spread(lambda row: row["seconds"] / 60, ".1f"),
            "steps": _spread(lambda row: row["steps"], ".0f"),
            "threads": _first(lambda row: str(row["threads"])),
            **_SETS,
        },
        "",
    ),
    "classifier": (
        "MiniLM trained on SST-2, then pruned on its unlabelled sentences",
        {
            **_CASE,
            "accuracy": _spread(lambda row: row["accuracy"], ".1%"),
            **_SETS,
            "healed (first set)": _of_healed(lambda healed: f"{healed['accuracy']:.1%}"),
            "minutes": _of_healed(lambda healed: f"{healed['seconds'] / 60:.1f}"),
            "threads": _of_healed(lambda healed: str(healed["threads"])),
        },
        "",
    ),
    "cost": (
        "Cost of one-shot pruning, 512 texts",
        {
            "model": _first(lambda row: row["part"].removeprefix("cost of ")),
            **_CASE,
            "seconds": _spread(lambda row: row["seconds"], ".0f"),
            "MB over the model": _spread(lambda row: row["megabytes"], ".0f"),
            "threads": _first(lambda row: str(row["threads"])),
        },
        "",
    ),
}
