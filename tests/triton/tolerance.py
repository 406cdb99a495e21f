"""By which rule the answer of a Triton kernel passes, on a GPU and in the interpreter."""

from __future__ import annotations

import torch
from torch import Tensor

BF16_ULP = 2.0**-7  # of a number's own size, at most


def assert_as_exact_as_torch(answer: Tensor, torchs: Tensor, exact: Tensor) -> None:
    """The error against float64 is at most twice that of torch's own op in the same dtype, plus 1e-6.

    The interpreter cuts float32 off to bfloat16 where a GPU rounds, so there an ulp comes on top.
    """
    assert answer.shape == exact.shape
    assert answer.dtype == torchs.dtype
    if not exact.numel():
        return
    error, baseline = ((t.double() - exact).abs() for t in (answer, torchs))
    if answer.dtype == torch.bfloat16 and not torch.cuda.is_available():
        error = error - BF16_ULP * exact.abs()
    allowed = 2 * baseline.max().item() + 1e-6 * max(1.0, exact.abs().max().item())
    # Not `error > allowed`: NaN has to fail.
    assert (error <= allowed).all(), f"error {error.max().item():.3g}, torch's {baseline.max().item():.3g}"
