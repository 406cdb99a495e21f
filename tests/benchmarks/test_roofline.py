"""The predictions of the cost model of GPUs in ``kernels/README.md``: labelled, and those of the model."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.roofline import records
from sparsebert.report.roofline_tables import roofline_tables
from sparsebert.results import read

ROOT = Path(__file__).parents[2]
STORED = ROOT / "benchmarks" / "results" / "roofline.jsonl"


@pytest.fixture(scope="module")
def rows():
    return records()


def test_the_stored_figures_are_those_of_the_model(rows):
    """Otherwise: ``python -m benchmarks.roofline --out`` this file, then ``render_docs --write``."""

    def figures(records):
        return [
            {
                name: list(value) if isinstance(value, tuple) else value
                for name, value in row.items()
                if name != "timestamp"
            }
            for row in records
        ]

    assert figures(rows) == figures(read(STORED))


def test_every_figure_is_the_longest_bound_and_a_launch(rows):
    for row in rows:
        assert row["us"] == pytest.approx(max(row["bounds_us"].values()) + row["kernel_us"], abs=0.02)
        assert row["bounds_us"][row["bound"]] == max(row["bounds_us"].values())


def test_the_tables_say_that_nothing_was_measured(rows):
    for table in roofline_tables(rows):
        assert "modelled" in table.title
        assert "nothing was measured" in table.notes[0]


def test_the_largest_bound_stands_out(rows):
    _, table = roofline_tables(rows)
    row = next(row for row in rows if row["sparsity"] == 0.9 and row["block"] == [64, 64])
    assert sum("**" in cell for cell in table.rows[0]) == 1
    assert f"**{row['bounds_us'][row['bound']]:.1f}**" in table.rows[0]
