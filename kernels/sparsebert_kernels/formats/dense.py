"""Dense weights, prepacked once for oneDNN: the bar every sparse format has to beat, and the plan's fallback.

PyTorch's own `F.linear` repacks nothing and may run on a slower BLAS (on AMD, MKL's AVX2 path), so the
prepacked form is the honest dense baseline and a free gain where sparsity does not pay.
"""

from __future__ import annotations

import functools
from typing import Any, Self

import torch
from torch import Tensor

from .base import GPU_DTYPES, PackedWeight, checked, refuse_options

# Rows of x (tokens of a batch) to choose a layout or a format for, unless the caller knows better.
DEFAULT_TOKENS = 128


class DensePrepacked(PackedWeight):
    """The whole matrix, zeros included.

    values   float32, bfloat16 or float16 [out, in], in oneDNN's blocked layout where that is available (an
             opaque tensor of the same size), else the plain matrix
    """

    name = "dense"
    TENSORS = ("values",)
    GEOMETRY = ()

    @classmethod
    def from_dense(
        cls, weight: Tensor, mask: Tensor | None = None, *, tokens: int = DEFAULT_TOKENS, **options: Any
    ) -> Self:
        """See `PackedWeight.from_dense`; ``tokens`` is the number of rows of x to choose the layout for."""
        refuse_options(cls, options)
        weight, mask = checked(weight, mask, GPU_DTYPES)
        dense = torch.where(mask, weight, weight.new_zeros(()))
        return cls((weight.shape[0], weight.shape[1]), {"values": prepack(dense, tokens)}, {})

    def to_dense(self) -> Tensor:
        return self.values.to_dense() if self.values.is_mkldnn else self.values

    def kept(self) -> Tensor:
        return self.to_dense() != 0

    @property
    def nbytes(self) -> int:
        return self.shape[0] * self.shape[1] * self.dtype.itemsize


def prepack(dense: Tensor, tokens: int) -> Tensor:
    """``dense`` in oneDNN's layout for ``tokens`` rows of x, or as it is where that cannot be had."""
    if dense.device.type != "cpu" or not dense.numel() or not prepacking_works(dense.dtype):
        return dense
    return torch.ops.mkldnn._reorder_linear_weight(dense, tokens)


@functools.cache
def prepacking_works(dtype: torch.dtype) -> bool:
    """Whether torch's private oneDNN linear exists here and gives right answers for ``dtype``."""
    if not torch.backends.mkldnn.is_available():
        return False
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(48, 40, generator=generator).to(dtype)
    x = torch.randn(7, 40, generator=generator).to(dtype)
    bias = torch.randn(48, generator=generator).to(dtype)
    try:
        packed = torch.ops.mkldnn._reorder_linear_weight(weight, 7)
        result = torch.ops.mkldnn._linear_pointwise(x, packed, bias, "none", [], "")
        same = torch.equal(packed.to_dense(), weight)
    except (RuntimeError, AttributeError, NotImplementedError, TypeError):
        return False
    expected = torch.nn.functional.linear(x.double(), weight.double(), bias.double())
    tolerance = 1e-4 if dtype == torch.float32 else 0.1
    return same and bool((result.double() - expected).abs().max() < tolerance)
