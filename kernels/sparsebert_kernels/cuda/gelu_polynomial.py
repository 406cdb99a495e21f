"""The polynomial behind GELU in the epilogues of half-precision kernels, and the fit that gives it.

    gelu(z) = max(z, 0) - a Phi(-a)  with  a = |z|,  Phi(-a) = 2^P(a)

P approximates log2 Phi(-a), which is smooth where Phi itself falls by 38 orders of magnitude. An absolute
error of P is a relative error of Phi, so that even the smallest results are right to the last bit. A
polynomial for erf has an absolute error instead: its results below z = -4 have no correct digit.

    python -m sparsebert_kernels.cuda.gelu_polynomial

prints the coefficients. The fit is minimax, by Lawson's algorithm (C. L. Lawson, "Contributions to the theory
of linear least maximum approximation", 1961): least squares whose weights grow where the error is largest.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

# Coefficients of P from a^7 down to 1, in the order of Horner's rule; the result of `fit`.
COEFFICIENTS = (
    -4.83377653e-07,
    2.48402560e-05,
    -5.35047932e-04,
    6.39702685e-03,
    -4.82029453e-02,
    -4.65904053e-01,
    -1.14765054e00,
    -1.00028327e00,
)
# Beyond this a, 2^P(a) is 0 in float32. It also keeps an infinite a out of the polynomial.
LARGEST = 14.5
# Below this, results are flushed to 0: 2^P(a) has then left the normal numbers of float32.
FLUSHED = 2.0**-122

FITTED = 12.95  # the fit covers [0, FITTED], up to where results are flushed
# Relative errors allowed to Phi: half a unit in the last place of float16 while results are normal float16
# numbers, then half the distance of its subnormal numbers, at most half a unit of bfloat16, all less a margin
# for the rounding of float32.
HALF_ULP_FP16, HALF_STEP_FP16, HALF_ULP_BF16 = 0.9 * 2.0**-12, 2.0**-25, 0.9 * 2.0**-9
POINTS, ROUNDS = 2000, 300


def log2_tail(a: Tensor) -> Tensor:
    """Return log2 Phi(-a) in float64."""
    return torch.special.log_ndtr(-a.double()) / math.log(2)


def tolerance(a: Tensor) -> Tensor:
    """Return the relative error of Phi(-a) that the fit allows at ``a`` (float64)."""
    results = a * torch.exp2(log2_tail(a))
    return (HALF_STEP_FP16 / results).clamp(HALF_ULP_FP16, HALF_ULP_BF16)


def polynomial(a: Tensor, coefficients: tuple[float, ...] = COEFFICIENTS) -> Tensor:
    """Return P(a) in the dtype of ``a``, by Horner's rule."""
    p = torch.full_like(a, coefficients[0])
    for coefficient in coefficients[1:]:
        p = p * a + coefficient
    return p


def fit(degree: int = 7) -> tuple[float, ...]:
    """Return the coefficients with the least maximum of error / tolerance, highest degree first."""
    # Chebyshev points, in whose polynomials the least-squares problem is well conditioned.
    angle = torch.pi * (torch.arange(POINTS, dtype=torch.float64) + 0.5) / POINTS
    a = FITTED * (1 - torch.cos(angle)) / 2
    x = 2 * a / FITTED - 1
    basis = torch.cos(torch.arange(degree + 1) * torch.arccos(x)[:, None])
    target, allowed = log2_tail(a), tolerance(a) / math.log(2)
    weights = torch.full_like(a, 1 / POINTS)
    best, least = torch.zeros(degree + 1, dtype=torch.float64), math.inf
    for _ in range(ROUNDS):
        scale = (weights.sqrt() / allowed)[:, None]
        solution = torch.linalg.lstsq(basis * scale, target[:, None] * scale, driver="gelsd").solution[:, 0]
        errors = (basis @ solution - target).abs() / allowed
        if errors.max() < least:
            best, least = solution, float(errors.max())
        weights *= errors
        weights /= weights.sum()
    # From Chebyshev polynomials of x to powers of a, by interpolation in as many points as coefficients.
    nodes = FITTED * (1 - torch.cos(torch.pi * (torch.arange(degree + 1) + 0.5).double() / (degree + 1))) / 2
    values = torch.cos(torch.arange(degree + 1) * torch.arccos(2 * nodes / FITTED - 1)[:, None]) @ best
    powers = nodes[:, None] ** torch.arange(degree, -1, -1)
    return tuple(torch.linalg.solve(powers, values).tolist())


if __name__ == "__main__":
    print(", ".join(f"{value:.8e}" for value in fit()))
