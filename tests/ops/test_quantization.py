"""Symmetric int8: the definition, transcribed to numpy, and what becomes of odd values."""

from __future__ import annotations

import math
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given
from torch import Tensor, nn

from sparsebert_kernels import quantization


def numpy_tokens(x: np.ndarray[Any, Any], limit: float | None) -> tuple[list[list[int]], list[float]]:
    """The definition, value by value: the largest magnitude becomes 127, ties go to the even integer."""
    values, scales = [], []
    for token in x.astype(np.float32):
        if not np.isfinite(token).all():
            values.append([0] * len(token))
            scales.append(math.nan)
            continue
        most = np.float32(limit) if limit is not None else max(abs(each) for each in token)
        most = max(np.float32(most), np.float32(1e-20))
        rate = np.float32(127) / most
        clamped = [min(max(each, -most), most) for each in token]
        values.append([round(float(each) * float(rate)) for each in clamped])
        scales.append(float(most / np.float32(127)))
    return values, scales


@given(
    st.integers(0, 2**16),
    st.integers(1, 6),
    st.integers(1, 90),
    st.sampled_from((1e-30, 1e-6, 1.0, 1e4, 1e30)),
    st.sampled_from((None, 0.5, 1e5)),
)
def test_tokens_are_the_definition(
    seed: int, tokens: int, width: int, magnitude: float, limit: float | None
) -> None:
    x = torch.randn(tokens, width, generator=torch.Generator().manual_seed(seed)) * magnitude
    x[0, 0] = torch.nan if seed % 3 == 0 else 0
    values, scales = numpy_tokens(x.numpy(), limit)
    found = quantization.quantize_tokens(x, None if limit is None else torch.tensor([limit]))
    assert found.values.dtype == torch.int8
    assert found.values.tolist() == values
    np.testing.assert_array_equal(found.scales.numpy(), np.float32(scales))


def test_ties_go_to_the_even_integer() -> None:
    x = torch.tensor([[127.0, 0.5, 1.5, 2.5, -0.5, -1.5, -126.5]])
    assert quantization.quantize_tokens(x).values.tolist() == [[127, 0, 2, 2, 0, -2, -126]]


def test_rates_are_rounded_once() -> None:
    """With 127 times a rounded reciprocal, these values next to a tie become 2 and 0."""
    x = torch.tensor([[float.fromhex("0x1.39b94ap2"), float.fromhex("0x1.da4a84p-5")]])
    assert quantization.quantize_tokens(x).values.tolist() == [[127, 1]]
    x = torch.tensor([[float.fromhex("0x1.94bd72p2"), float.fromhex("0x1.97ed4cp-6")]])
    assert quantization.quantize_tokens(x).values.tolist() == [[127, 1]]


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("limit", [None, 2.0])
def test_a_token_that_is_not_finite_has_no_scale(bad: float, limit: float | None) -> None:
    x = torch.tensor([[1.0, 2.0], [bad, 1.0], [-2.0, 1.0]])
    found = quantization.quantize_tokens(x, None if limit is None else torch.tensor([limit]))
    assert found.scales.isnan().tolist() == [False, True, False]
    assert found.values.tolist() == [[64, 127], [0, 0], [-127, 64]]


def test_tokens_beyond_a_limit_saturate() -> None:
    found = quantization.quantize_tokens(torch.tensor([[3.0, -9.0, 0.5]]), torch.tensor([1.0]))
    assert found.values.tolist() == [[127, -127, 64]]


def test_equal_values_and_zeros() -> None:
    found = quantization.quantize_tokens(torch.tensor([[0.3, 0.3, 0.3], [0.0, 0.0, -0.0]]))
    assert found.values.tolist() == [[127, 127, 127], [0, 0, 0]]
    assert found.scales.isfinite().all()


@given(st.integers(0, 2**16), st.integers(1, 8), st.integers(1, 50))
def test_rows_of_a_weight_are_at_most_half_a_step_off(seed: int, rows: int, columns: int) -> None:
    weight = torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))
    weight[0] = 0
    found = quantization.quantize_rows(weight)
    assert found.scales[0] == 0
    assert (found.values.abs().amax(1)[1:] == 127).all()
    error = (found.dequantized().double() - weight.double()).abs()
    assert (error <= found.scales.double()[:, None] * (0.5 + 1e-5)).all()


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_a_weight_that_is_not_finite_is_refused(bad: float) -> None:
    weight = torch.ones(3, 4)
    weight[1, 2] = bad
    with pytest.raises(ValueError, match="row 1 of the weight has a NaN or infinity"):
        quantization.quantize_rows(weight)


@pytest.mark.parametrize("limit", [0, -1.0, math.nan, math.inf, True, "1"])
def test_a_limit_is_a_positive_finite_number(limit: Any) -> None:
    with pytest.raises(ValueError, match="limit must be a positive finite number"):
        quantization.checked_limit(limit)


class TwoLayers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.unused = (nn.Linear(4, 4) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        return self.second(torch.relu(self.first(x)))


def test_limits_are_the_largest_inputs_over_all_batches() -> None:
    model = TwoLayers()
    modules = {"first": model.first, "second": model.second}
    batches = [{"x": torch.full((2, 4), value)} for value in (1.0, -5.0, 2.0)]
    limits = quantization.observe_limits(model, modules, batches)
    assert limits["first"] == 5
    assert limits["second"] == max(float(model.first(batch["x"]).detach().relu().max()) for batch in batches)
    assert not model.first._forward_pre_hooks


@pytest.mark.parametrize(
    ("names", "value", "message"),
    [
        (("unused",), 1.0, "module 'unused' did not run"),
        (("first",), torch.nan, "the largest input of module 'first' is nan"),
        (("first",), 0.0, r"the largest input of module 'first' is 0\.0"),
    ],
)
def test_a_calibration_that_says_nothing_is_refused(
    names: tuple[str, ...], value: float, message: str
) -> None:
    model = TwoLayers()
    modules = {name: getattr(model, name) for name in names}
    with pytest.raises(ValueError, match=message):
        quantization.observe_limits(model, modules, [{"x": torch.full((1, 4), value)}])
    with pytest.raises(ValueError, match="did not run: calibration needs at least one batch"):
        quantization.observe_limits(model, modules, [])
