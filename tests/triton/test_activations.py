"""Activations of the epilogues: right to one unit in the last place of the dtype in which they are stored."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import triton
import triton.language as tl
from torch import Tensor

from sparsebert_kernels import reference
from sparsebert_kernels.cuda import gelu_polynomial
from sparsebert_kernels.cuda.device_functions import activate

BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32
HALF = {"bf16": BF16, "fp16": FP16}


@triton.jit
def activated(z, y, ACTIVATION: tl.constexpr, EXACT: tl.constexpr, BLOCK: tl.constexpr):
    """y = activation(z), both float32. Grid: (1,)."""
    at = tl.arange(0, BLOCK)
    tl.store(y + at, activate(tl.load(z + at), ACTIVATION, EXACT))


def of_kernel(z: Tensor, activation: str, device: torch.device, *, exact: bool = False) -> Tensor:
    """The kernel's activation of z [a power of two] in float32."""
    z = z.float().to(device)
    y = torch.empty_like(z)
    activated[(1,)](z, y, activation, exact, z.numel())
    return y.cpu()


def exact(z: Tensor, activation: str) -> Tensor:
    """GELU in float64, without the cancellation of 1 + erf in its left tail."""
    z = z.double()
    if activation == "gelu":
        return z * torch.exp(torch.special.log_ndtr(z))
    return z * torch.sigmoid(2 * math.sqrt(2 / math.pi) * (z + 0.044715 * z**3))


def all_of(dtype: torch.dtype) -> Tensor:
    """Every number of a 16-bit dtype: [65536]."""
    return torch.arange(-(2**15), 2**15).to(torch.int16).view(dtype)


def unit(y: Tensor, dtype: torch.dtype) -> Tensor:
    """The distance of the dtype's numbers around y, in float64."""
    info = torch.finfo(dtype)
    power = torch.floor(torch.log2(y.abs().clamp(min=info.smallest_normal)))
    return torch.exp2(power) * info.eps


@pytest.mark.filterwarnings("ignore:overflow encountered", "ignore:invalid value encountered")
@pytest.mark.parametrize("activation", ["gelu", "gelu_tanh"])
@pytest.mark.parametrize("dtype", HALF.values(), ids=HALF)
class TestEveryInputOfHalfPrecision:
    def test_is_within_one_unit_in_the_last_place(
        self, activation: str, dtype: torch.dtype, device: torch.device
    ) -> None:
        z = all_of(dtype)
        z = torch.where(z.isfinite(), z, 0)
        answer, expected = of_kernel(z, activation, device), exact(z, activation)
        wrong = (answer.to(dtype).double() - expected).abs()
        # What float32 itself can no longer hold as a normal number is 0.
        assert (wrong <= unit(expected, dtype) + gelu_polynomial.FLUSHED).all()

    def test_is_within_2e_4_before_it_is_rounded(
        self, activation: str, dtype: torch.dtype, device: torch.device
    ) -> None:
        z = all_of(dtype)
        z = torch.where(z.isfinite(), z, 0)
        wrong = (of_kernel(z, activation, device).double() - exact(z, activation)).abs()
        # float32 rounds to 2^-24 of a large result.
        assert (wrong <= 2e-4 + 2.0**-22 * z.double().abs()).all()

    def test_that_is_nan_stays_nan(self, activation: str, dtype: torch.dtype, device: torch.device) -> None:
        z = all_of(dtype)
        nan = torch.where(z.isnan(), z, math.nan)
        assert of_kernel(nan, activation, device).isnan().all()


@pytest.mark.parametrize("activation", ["gelu", "gelu_tanh"])
def test_float32_is_exact(activation: str, device: torch.device) -> None:
    z = torch.linspace(-12, 12, 2**14)
    wrong = (of_kernel(z, activation, device, exact=True).double() - exact(z, activation)).abs()
    assert wrong.max() <= 1e-6


@pytest.mark.parametrize("activation", ["gelu", "gelu_tanh"])
def test_the_gradient_of_training_is_the_slope_of_what_is_computed(activation: str) -> None:
    """Training takes the gradient of the exact function at the exact pre-activation.

    The slope of the approximation (float64, so that no rounding hides in it) differs by less than half a unit
    of bfloat16 of the largest slope.
    """
    z = torch.linspace(-13, 13, 20001, dtype=torch.float64, requires_grad=True)
    a = z.abs()
    if activation == "gelu":
        approximation = z.clamp(min=0) - a * torch.exp2(gelu_polynomial.polynomial(a))
    else:
        approximation = z / (1 + torch.exp(-2 * math.sqrt(2 / math.pi) * (z + 0.044715 * z**3)))
    (slope,) = torch.autograd.grad(approximation.sum(), z)
    gradient = reference.activate_backward(torch.ones_like(z), z.detach(), activation)
    assert (slope - gradient).abs().max() <= 2.0**-9


class TestPolynomial:
    def test_is_the_fit(self) -> None:
        torch.testing.assert_close(
            torch.tensor(gelu_polynomial.fit()), torch.tensor(gelu_polynomial.COEFFICIENTS), rtol=1e-3, atol=0
        )

    def test_is_within_its_tolerance(self) -> None:
        """Checked in numpy, with the coefficients rounded to float32 as the kernel has them."""
        a = np.linspace(0, gelu_polynomial.FITTED, 100_001)
        p = np.polyval(np.array(gelu_polynomial.COEFFICIENTS, np.float32).astype(np.float64), a)
        tail = np.array([math.erfc(value / math.sqrt(2)) / 2 for value in a])
        allowed = gelu_polynomial.tolerance(torch.from_numpy(a)).numpy()
        assert (np.abs(np.exp2(p) / tail - 1) <= allowed).all()

    def test_has_left_float32_where_the_argument_is_cut_off(self) -> None:
        a = torch.linspace(gelu_polynomial.FITTED, gelu_polynomial.LARGEST, 1001, dtype=torch.float64)
        p = gelu_polynomial.polynomial(a)
        assert (p.diff() < 0).all()
        assert p[-1] < -150
