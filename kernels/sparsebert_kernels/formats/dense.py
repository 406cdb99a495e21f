"""Dense weights, prepacked once for oneDNN: the baseline of the sparse formats, and the plan's fallback.

``F.linear`` does not prepack and may use a slower BLAS (on AMD, MKL's AVX2 path). The prepacked form is
therefore the fastest dense baseline in torch, and speeds up layers whose sparsity does not pay.
"""

from __future__ import annotations

import functools
from typing import Any, Self

import torch
from torch import Tensor

from sparsebert_kernels import bounded_rows
from sparsebert_kernels.memory import readable

from .base import GPU_DTYPES, PackedWeight, checked, refuse_options

# Default rows of x (tokens of a batch) for the choice of a layout or a format.
DEFAULT_TOKENS = 128
MAX_LAYOUT_TOKENS = 2**20
# Name and algorithm of the activations that oneDNN fuses into a product.
FUSED_ACTIVATIONS = {
    "none": ("none", ""),
    "relu": ("relu", ""),
    "gelu": ("gelu", "none"),
    "gelu_tanh": ("gelu", "tanh"),
}

# Private to torch; resolved once, since the look-up takes as long as the operator's own checks.
_onednn_linear: Any = getattr(getattr(torch.ops.mkldnn, "_linear_pointwise", None), "default", None)


class DensePrepacked(PackedWeight):
    """The whole matrix, zeros included.

    Attributes:
        values: float32, bfloat16 or float16 [out, in], in oneDNN's blocked layout where available (an opaque
            tensor of the same size), else the plain matrix.
    """

    name = "dense"
    TENSORS = ("values",)
    GEOMETRY = ()

    @classmethod
    def from_dense(
        cls, weight: Tensor, mask: Tensor | None = None, *, tokens: int = DEFAULT_TOKENS, **options: Any
    ) -> Self:
        """See ``PackedWeight.from_dense``.

        Args:
            weight: [out, in].
            mask: bool [out, in].
            tokens: Rows of x to optimize the layout for.
        """
        refuse_options(cls, options)
        weight, mask = checked(weight, mask, GPU_DTYPES)
        dense = torch.where(mask, weight, weight.new_zeros(()))
        return cls((weight.shape[0], weight.shape[1]), {"values": prepack(dense, tokens)}, {})

    def to_dense(self) -> Tensor:
        if not self.values.is_mkldnn:
            return self.values
        if torch.compiler.is_compiling():
            return self.values.to_dense()
        # functorch would wrap the plain matrix as if it were opaque too.
        with torch._C._DisableFuncTorch():
            return self.values.to_dense()

    def kept(self) -> Tensor:
        return self.to_dense() != 0

    @property
    def nbytes(self) -> int:
        return self.shape[0] * self.shape[1] * self.dtype.itemsize


def prepack(dense: Tensor, tokens: int) -> Tensor:
    """Return ``dense`` [out, in] in oneDNN's layout for ``tokens`` rows of x, unchanged without oneDNN.

    More rows than ``MAX_LAYOUT_TOKENS`` take the layout for that many: oneDNN fails for far larger numbers.
    """
    if dense.device.type != "cpu" or not dense.numel() or not prepacking_works(dense.dtype):
        return dense
    return torch.ops.mkldnn._reorder_linear_weight(dense, min(tokens, MAX_LAYOUT_TOKENS))


def prepacked_linear(x: Tensor, values: Tensor, bias: Tensor | None, activation: str = "none") -> Tensor:
    """Return ``activation(x @ W.T + bias)`` for W in oneDNN's layout, in bounded memory (``bounded_rows``).

    Args:
        x: [..., in] in the dtype of W.
        values: W [out, in], prepacked by ``prepack``.
        bias: [out] or None.
        activation: "none", "relu", "gelu" or "gelu_tanh", fused into the product.
    """
    kind = values.shape, values.dtype, activation
    return bounded_rows.linear(
        x, values.shape[0], kind, lambda part: onednn_linear(part, values, bias, activation)
    )


def onednn_linear(x: Tensor, values: Tensor, bias: Tensor | None, activation: str = "none") -> Tensor:
    """Return ``prepacked_linear`` without a bound: each number of rows and each stride costs memory."""
    name, algorithm = FUSED_ACTIVATIONS[activation]
    # Half a microsecond faster than an unconditional `to`.
    if bias is not None and bias.dtype != x.dtype:
        bias = bias.to(x.dtype)
    bias = None if bias is None else readable(bias.contiguous())
    return _onednn_linear(readable(x), values, bias, name, [], algorithm)


@functools.cache
def prepacking_works(dtype: torch.dtype) -> bool:
    """Return whether torch's private oneDNN linear exists and is correct for ``dtype`` on this machine."""
    if not torch.backends.mkldnn.is_available() or _onednn_linear is None:
        return False
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(48, 40, generator=generator).to(dtype)
    x = torch.randn(7, 40, generator=generator).to(dtype)
    bias = torch.randn(48, generator=generator).to(dtype)
    try:
        packed = torch.ops.mkldnn._reorder_linear_weight(weight, 7)
        result = _onednn_linear(x, packed, bias, "none", [], "")
        same = torch.equal(packed.to_dense(), weight)
    except (RuntimeError, AttributeError, NotImplementedError, TypeError):
        return False
    expected = torch.nn.functional.linear(x.double(), weight.double(), bias.double())
    tolerance = 1e-4 if dtype == torch.float32 else 0.1
    return same and bool((result.double() - expected).abs().max() < tolerance)
