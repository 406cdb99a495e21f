"""Computation of a linear layer and its gradients with the backend that supports the weight's format.

The backend is the native library on a CPU, the Triton kernels on a GPU, and torch for everything else.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from . import bounded_rows, quantization, reference
from .cpu import fp16, native
from .cuda import backend as cuda
from .formats import ElementFp16, ElementSparse, PackedWeight, PanelSparse, VectorInt8, VectorSparse
from .formats.dense import prepacked_linear
from .formats.element import BLOCK_COLUMNS, BLOCK_ROWS
from .formats.transpose import transposed_index

TRAINABLE = (ElementSparse, VectorSparse, PanelSparse)


def compute(
    x: Tensor, packed: Any, bias: Tensor | None, activation: str, residual: Tensor | None = None
) -> Tensor:
    """Return ``activation(x @ W.T + bias) + residual`` in the dtype of x, for checked arguments."""
    values = packed.values
    if cuda.supports(packed.name, x):
        return cuda.linear(x, packed, bias, activation, residual)
    if residual is not None:
        return compute(x, packed, bias, activation) + residual
    if activation == "tanh":  # of the pooler; no native kernel applies it
        return torch.tanh(compute(x, packed, bias, "none"))
    if native.supports(packed.name, values.dtype, x):
        outputs = native.linear(x, (packed,), (bias,), activation)
        if outputs is not None:
            return outputs[0]
    if isinstance(packed, ElementFp16):
        return _fp16_linear(x, packed, bias, activation)
    if isinstance(packed, VectorInt8):
        return _int8_linear(x, packed, bias, activation)
    if packed.name == "dense" and values.is_mkldnn and x.dtype == values.dtype:
        return prepacked_linear(x, values, bias, activation)
    if packed.name == "compact":
        return _compact_linear(x, packed, bias, activation)
    if packed.name == "csr" and x.dtype == values.dtype == torch.float32:
        out = reference.csr_linear(x.reshape(-1, x.shape[-1]), packed.tensor(), bias, activation)
        return out.view(*x.shape[:-1], packed.shape[0])
    return _torch_linear(x, packed.to_dense(), bias, activation)


def input_gradient(gradient: Tensor, packed: PackedWeight, transposed: Sequence[Tensor]) -> Tensor:
    """Return dL/dx = gradient @ W, through the transposed structure where the format has one.

    Args:
        gradient: dL/dy [..., out].
        packed: W.
        transposed: ``transposed_index(packed)``, or empty to compute it here.
    """
    if cuda.supports(packed.name, gradient):
        return cuda.input_gradient(gradient, packed, transposed)
    if not isinstance(packed, ElementSparse | VectorSparse):
        return _torch_linear(gradient, packed.to_dense().t(), None)
    source, *index = transposed or transposed_index(packed)
    values = packed.values.flatten()[source]
    tensors = dict(zip(ElementSparse.TENSORS, (values, *index), strict=True))
    blocks = {"block_rows": BLOCK_ROWS, "block_columns": BLOCK_COLUMNS}
    flipped = ElementSparse((packed.shape[1], packed.shape[0]), tensors, blocks)
    return compute(gradient, flipped, None, "none")


def values_gradient(gradient: Tensor, x: Tensor, packed: Any) -> Tensor:
    """Return dL/dvalues in the layout of ``packed.values``, zero in slack and padding.

    Raises:
        ValueError: The format cannot be trained.
    """
    if not isinstance(packed, TRAINABLE):
        names = ", ".join(repr(cls.name) for cls in TRAINABLE)
        raise ValueError(f"weights in format {packed.name!r} cannot be trained; trainable formats: {names}")
    if cuda.supports(packed.name, gradient):
        return cuda.values_gradient(gradient, x, packed)
    if native.supports(packed.name, packed.dtype, x):
        return native.values_gradient(gradient, x, packed)
    gradient, x = gradient.reshape(-1, gradient.shape[-1]), x.reshape(-1, x.shape[-1])
    row, column = packed.coordinates()
    kept = row < packed.shape[0]
    kept[1:] &= (row[1:] != row[:-1]) | (column[1:] != column[:-1])
    flat = torch.zeros(packed.values.numel(), dtype=torch.float32, device=x.device)
    slots = kept.nonzero().squeeze(1)
    flat[slots] = reference.values_gradient(gradient, x, row[slots], column[slots])
    return flat.view(packed.values.shape).to(packed.dtype)


def _fp16_linear(x: Tensor, packed: ElementFp16, bias: Tensor | None, activation: str) -> Tensor:
    answer = fp16.linear(x, packed, bias, activation) if fp16.supports(packed, x) else None
    if answer is None:
        return compute(x, packed.in_fp32(), bias, activation)
    y, lost = answer
    if lost.any():
        exact = compute(x[lost].float(), packed.in_fp32(), bias, "none")
        fp16.note_overflow(packed, int(exact.isfinite().all(-1).sum()))
        y[lost] = reference.activate(exact, activation).to(y.dtype)
    return y


def _int8_linear(x: Tensor, packed: VectorInt8, bias: Tensor | None, activation: str) -> Tensor:
    limit = packed.limit if packed.limit.numel() else None
    tokens = quantization.quantize_tokens(x.reshape(-1, packed.shape[1]), limit)
    y = quantization.integer_linear(tokens, packed.quantized(), bias, activation)
    return y.to(x.dtype).view(*x.shape[:-1], packed.shape[0])


def _compact_linear(x: Tensor, packed: Any, bias: Tensor | None, activation: str) -> Tensor:
    out_features = packed.shape[0]
    dead = x.new_zeros(out_features) if bias is None else bias.to(x.dtype)
    out = reference.activate(dead, activation).expand(*x.shape[:-1], out_features).clone()
    if packed.values.numel() and x.numel():
        x = x.index_select(-1, packed.live_columns)
        bias = None if bias is None else bias[packed.live_rows]
        rectangle = packed.rectangle()
        live = (
            prepacked_linear(x, rectangle.values, bias, activation)
            if rectangle.values.is_mkldnn and x.dtype == rectangle.dtype
            else _torch_linear(x, rectangle.to_dense(), bias, activation)
        )
        out.index_copy_(-1, packed.live_rows, live)
    return out


def _torch_linear(x: Tensor, weight: Tensor, bias: Tensor | None, activation: str = "none") -> Tensor:
    if not x.is_cpu or x.dtype not in (torch.bfloat16, torch.float16):  # MKL compiles no code
        return reference.linear(x, weight, bias, activation)
    kind = weight.shape, weight.stride(), x.dtype, "torch"
    return bounded_rows.linear(
        x, weight.shape[0], kind, lambda part: reference.linear(part, weight, bias, activation)
    )
