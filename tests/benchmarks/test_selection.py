"""The selection benchmark: every side chooses the same weights, in a process of its own."""

import pytest
import torch

from benchmarks.selection import SIDES, make_scores, measure, rows_of


@pytest.mark.parametrize("side", SIDES)
def test_every_side_keeps_the_highest(side):
    scores = make_scores(30_000, tied=False)
    expected = torch.zeros(30_000, dtype=torch.bool)
    expected[scores.argsort(descending=True)[:9_000]] = True
    assert torch.equal(SIDES[side](scores, 9_000), expected)


@pytest.mark.parametrize("side", [side for side in SIDES if side != "torch.kthvalue"])
def test_ties_are_cut_exactly_by_all_but_one(side):
    assert SIDES[side](make_scores(30_000, tied=True), 9_000).sum() == 9_000


@pytest.mark.slow
def test_memory_is_that_of_a_fresh_process():
    found = measure("sparsebert", 3_000_000, tied=False)
    assert 12_000_000 < found["peak_bytes"] < 2.5 * 12_000_000
    assert found["beyond"] == 0
    assert found["seconds"] > 0


@pytest.mark.slow
def test_records_hold_every_side_and_the_goals():
    rows = rows_of(100_000, rounds=1)
    assert [row["side"] for row in rows if row["kind"] == "selection"] == [*SIDES, *SIDES]
    assert [row["unit"] for row in rows if row["kind"] == "goal"] == ["x", "x"]
