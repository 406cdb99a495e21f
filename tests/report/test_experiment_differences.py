"""Experiments whose published numbers are differences from a row, such as transfer minus the dense model."""

from __future__ import annotations

from typing import Any

from sparsebert.report.experiment_tables import experiment_tables
from sparsebert.report.format import MISSING

Record = dict[str, Any]


def record(row: str, value: float | None, published: float | None = None, seed: int = 1) -> Record:
    """A record of a sweep whose numbers are differences from the row ``dense``."""
    found = {"status": "not run", "reason": "no weights"}
    if value is not None:
        found = {"status": "done", "reason": None, "metric": "accuracy", "value": value, "sparsity": 0.7}
        found |= {"ticket_bytes": 1, "seconds": 60.0}
    return {
        "experiment": "transfer",
        "title": "Transfer",
        "small": False,
        "source": None,
        "unit": "percent",
        "row": row,
        "row_label": row,
        "column": "sst2",
        "column_label": "SST-2",
        "seed": seed,
        "place": [("dense", "from-mlm").index(row), 0],
        "model": "bert",
        "relative_to": "dense",
        "published": None if published is None else {"mean": published, "std": None},
        **found,
    }


def cells_of(records: list[Record]) -> dict[str, tuple[str, ...]]:
    """Our number, theirs and the difference of each row."""
    details = experiment_tables(records)[1]
    return {row[0].partition(",")[0]: tuple(row[1:4]) for row in details.rows}


def test_ours_is_the_difference_from_the_row_with_the_same_seed() -> None:
    dense = [record("dense", 0.90, seed=1), record("dense", 0.92, seed=2)]
    rows = cells_of([*dense, record("from-mlm", 0.902, -0.19), record("from-mlm", 0.904, -0.19, seed=2)])
    assert rows["from-mlm"] == ("-0.70 ± 1.27", "-0.19", "-0.51")
    assert rows["dense"][0] == "91.00 ± 1.41"


def test_without_the_row_there_is_no_difference() -> None:
    assert cells_of([record("dense", None), record("from-mlm", 0.9, -0.19)])["from-mlm"][0] == MISSING
    assert cells_of([record("from-mlm", 0.9, -0.19)])["from-mlm"][0] == MISSING


def test_a_note_names_the_row() -> None:
    notes = experiment_tables([record("dense", 0.9), record("from-mlm", 0.9, -0.19)])[0].notes
    assert any(note.startswith("Minus the metric of the row 'dense'") for note in notes)
