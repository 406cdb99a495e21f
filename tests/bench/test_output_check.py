"""The gate: no figures without right answers."""

import pytest
import torch

from sparsebert.bench.output_check import TOLERANCES, OutputMismatchError, compare, require

MASK = [torch.tensor([[1, 1, 0]])]


def answers(*values: float) -> list[torch.Tensor]:
    return [torch.tensor(values).view(1, 3, 1)]


def test_error_is_relative_to_the_largest_reference():
    verdict = compare("side", answers(4.0, 1.5, 0.0), answers(4.0, 1.0, 0.0), MASK, precision="float32")
    assert verdict.error == pytest.approx(0.125)
    assert not verdict.passed


def test_padding_is_not_judged():
    verdict = compare("side", answers(4.0, 1.0, 99.0), answers(4.0, 1.0, 0.0), MASK, precision="float32")
    assert verdict.error == 0
    assert verdict.passed


@pytest.mark.parametrize("wrong", [float("nan"), float("inf")])
def test_an_answer_that_is_no_number_never_passes(wrong):
    verdict = compare("side", answers(4.0, wrong, 0.0), answers(4.0, 1.0, 0.0), MASK, precision="int8")
    assert not verdict.passed


def test_tolerance_follows_the_arithmetic():
    off = answers(4.0, 1.1, 0.0)
    assert not compare("side", off, answers(4.0, 1.0, 0.0), MASK, precision="float32").passed
    assert compare("side", off, answers(4.0, 1.0, 0.0), MASK, precision="bfloat16").passed
    assert TOLERANCES["float32"] < TOLERANCES["bfloat16"] < TOLERANCES["int8"]


def test_other_shapes_are_refused():
    with pytest.raises(ValueError, match="side returns shape"):
        compare("side", [torch.zeros(1, 2, 1)], answers(1, 1, 1), MASK, precision="float32")


def test_a_red_gate_names_side_error_and_tolerance():
    good = compare("good", answers(4.0, 1.0, 0.0), answers(4.0, 1.0, 0.0), MASK, precision="float32")
    bad = compare("bad", answers(4.0, 3.0, 0.0), answers(4.0, 1.0, 0.0), MASK, precision="float32")
    require([good])
    with pytest.raises(OutputMismatchError, match=r"bad: error 5\.00e-01 > tolerance 1e-04") as refused:
        require([good, bad])
    assert "good" not in str(refused.value)
