"""The int8 benchmark: a gate of integers, and goals that follow from the cells."""

import pytest
import torch

from benchmarks import int8_layers
from sparsebert.bench import environment
from sparsebert.bench.output_check import OutputMismatchError
from sparsebert_kernels import ops


def test_a_cell_has_the_speed_of_every_side():
    row = int8_layers.measure((64, 48), 5, 0.0, environment.detect().record())
    assert {"layer", "together", "dense", "vector_fp32", "onednn_fp32"} <= row["tops"].keys()
    assert 0 < row["error_fp32"] < 0.05


def test_nothing_is_timed_after_a_wrong_answer(monkeypatch):
    linear = ops.linear
    monkeypatch.setattr(ops, "linear", lambda *arguments: linear(*arguments) + 1)
    with pytest.raises(OutputMismatchError, match="layer"):
        int8_layers.measure((64, 48), 5, 0.0, {})


def cell(tokens, speed):
    return {"shape": [768, 3072], "tokens": tokens, "tops": {"layer": speed}, "busy": False}


def test_the_goals_are_the_worst_speed_and_the_dip_between():
    cells = [cell(64, 4.0), cell(80, 3.6), cell(100, 3.8), cell(128, 4.2)]
    worst, dip = int8_layers.goals(cells, {})
    assert (worst["value"], worst["passed"]) == (3.6, True)
    assert dip["value"] == pytest.approx(0.1)
    assert int8_layers.goals(cells[:3], {}) == []


def test_a_rival_gives_the_integers_that_it_is_checked_against():
    generator = torch.Generator().manual_seed(0)
    x, weight, bias = (torch.randn(size, generator=generator) for size in ((5, 32), (16, 32), (16,)))
    rival = int8_layers.onednn_int8(weight, bias, x)
    if rival is None:
        pytest.skip("torch has no int8 layer of oneDNN")
    run, exact = rival
    torch.testing.assert_close(run().double(), exact, rtol=1e-4, atol=1e-4)
