"""The layer benchmark: exact masks, a gate, and verdicts that follow from the cells."""

import pytest
import torch

from benchmarks.goals import goal
from benchmarks.layers import CASES, Case, measure, packed_layer, summarise
from benchmarks.random_mask import random_mask
from sparsebert.bench.output_check import OutputMismatchError

CASE = Case("case", "element", 0.9, torch.float32, must=4.0, aim=5.0)


@pytest.mark.parametrize("rows", [1, 4])
@pytest.mark.parametrize("sparsity", [0.7, 0.9, 0.95])
def test_masks_keep_the_exact_share_in_whole_vectors(sparsity, rows):
    mask = random_mask((64, 48), (rows, 1), sparsity, torch.Generator().manual_seed(0))
    units = mask.view(64 // rows, rows, 48)
    assert mask.sum().item() == rows * round((1 - sparsity) * mask.numel() / rows)
    assert torch.equal(units.all(dim=1), units.any(dim=1))


def test_packed_and_dense_layer_hold_the_same_weight():
    linear, packed = packed_layer((64, 48), 0.9, "vector", torch.bfloat16)
    assert torch.equal(packed.to_dense(), linear.weight)


def cell(ratio, shape=(768, 768), tokens=128, busy=False):
    quantile = {"median": ratio, "p20": ratio, "p80": ratio}
    return {
        "ratio": quantile,
        "equal_turns": quantile,
        "shape": list(shape),
        "tokens": tokens,
        "threads": 1,
        "busy": busy,
    }


@pytest.mark.parametrize(
    ("ratios", "passed"),
    [((4.0, 4.0), True), ((3.9, 3.9), False), ((3.4, 6.0), True), ((3.3, 6.0), False)],
)
def test_a_case_passes_with_its_mean_reached_and_no_cell_far_below(ratios, passed):
    summary = summarise(CASE, [cell(ratio, tokens=index) for index, ratio in enumerate(ratios)])
    assert summary["passed"] is passed
    assert summary["geomean"] == pytest.approx((ratios[0] * ratios[1]) ** 0.5)
    assert summary["worst_cell"] == "768x768, M = 0"


def test_a_case_without_a_limit_has_no_verdict():
    case = Case("free", "vector", 0.9, torch.bfloat16, must=None, aim=8.0)
    assert summarise(case, [cell(7.0, busy=True)])["passed"] is None


def test_a_cell_is_timed_against_the_prepacked_layer():
    case = Case("case", "element", 0.9, torch.float32, must=4.0, aim=5.0)
    found = measure(case, (64, 48), tokens=5, budget=0.0)
    assert found["ratio"]["median"] > 0
    assert found["gate"]["error"] <= found["gate"]["tolerance"]
    assert found["weight_bytes"] < found["dense_weight_bytes"]


def test_a_wrong_kernel_gives_no_figure(monkeypatch):
    monkeypatch.setattr("benchmarks.layers.ops.linear", lambda x, packed, bias: torch.zeros(5, 64))
    with pytest.raises(OutputMismatchError, match="sparse: error"):
        measure(CASE, (64, 48), tokens=5, budget=0.0)


def test_case_names_are_their_own():
    assert len({case.name for case in CASES}) == len(CASES)


@pytest.mark.parametrize(
    ("value", "at_most", "passed"),
    [(3, False, True), (2.9, False, False), (3, True, True), (3.1, True, False)],
)
def test_goals_know_which_side_of_the_limit_is_good(value, at_most, passed):
    assert goal("g", value, must=3, aim=3, unit="s", environment={}, at_most=at_most)["passed"] is passed
