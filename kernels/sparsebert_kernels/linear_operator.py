"""``sparsebert::linear``: one custom operator for all formats, with its fake and autograd registrations.

Eager mode, ``torch.compile``, ``torch.export`` and autograd all see this operator. Its arguments are plain
tensors and numbers, from which ``_rebuild`` makes a packed weight.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from . import dispatch, forward_mode, reference
from .formats import FORMATS, FP16_FORMATS, INT8_FORMATS, PackedWeight


def call(
    x: Tensor,
    packed: PackedWeight,
    bias: Tensor | None,
    transposed: Sequence[Tensor],
    activation: str,
    residual: Tensor | None,
) -> Tensor:
    """Call the operator for a packed weight. Raises RuntimeError in an export to ONNX, which lacks it."""
    _refuse_onnx()
    index = [getattr(packed, name) for name in packed.TENSORS[1:]]
    geometry = [int(getattr(packed, name)) for name in packed.GEOMETRY]
    return sparse_linear(
        x,
        packed.values,
        index,
        bias,
        list(transposed),
        packed.name,
        geometry,
        packed.shape[0],
        activation,
        residual,
    )


def _refuse_onnx() -> None:
    if torch.onnx.is_in_onnx_export():
        raise RuntimeError("ONNX has no sparse layers; call sparsebert.densify_(model) before the export")


def _rebuild(
    values: Tensor, index: Sequence[Tensor], format: str, geometry: Sequence[int], shape: tuple[int, int]
) -> PackedWeight:
    cls = {**FORMATS, **INT8_FORMATS, **FP16_FORMATS}[format]
    # torch passes a zero tensor as one zero that is expanded; an opaque tensor has no strides.
    values = values if values.is_mkldnn else values.contiguous()
    tensors = dict(zip(cls.TENSORS, (values, *index), strict=True))
    return cls(shape, tensors, dict(zip(cls.GEOMETRY, geometry, strict=True)))


@torch.library.custom_op("sparsebert::linear", mutates_args=())
def sparse_linear(
    x: Tensor,
    values: Tensor,
    index: Sequence[Tensor],
    bias: Tensor | None,
    transposed: Sequence[Tensor],
    format: str,
    geometry: Sequence[int],
    out_features: int,
    activation: str,
    residual: Tensor | None = None,
) -> Tensor:
    forward_mode.refuse("sparsebert::linear")
    packed = _rebuild(values, index, format, geometry, (out_features, x.shape[-1]))
    with torch.autocast(x.device.type, enabled=False):  # `ops.linear` has cast x
        return dispatch.compute(x, packed, bias, activation, residual)


@sparse_linear.register_fake
def _(
    x: Tensor,
    values: Tensor,
    index: Sequence[Tensor],
    bias: Tensor | None,
    transposed: Sequence[Tensor],
    format: str,
    geometry: Sequence[int],
    out_features: int,
    activation: str,
    residual: Tensor | None = None,
) -> Tensor:
    _refuse_onnx()  # here too: torch's newer exporter traces past the call
    return x.new_empty((*x.shape[:-1], out_features))


@torch.library.custom_op("sparsebert::linear_backward", mutates_args=())
def sparse_linear_backward(
    gradient: Tensor,
    x: Tensor,
    values: Tensor,
    index: Sequence[Tensor],
    transposed: Sequence[Tensor],
    format: str,
    geometry: Sequence[int],
    needs_x: bool,
    needs_values: bool,
) -> tuple[Tensor, Tensor]:
    forward_mode.refuse("sparsebert::linear_backward")
    out_features, in_features = gradient.shape[-1], x.shape[-1]
    packed = _rebuild(values, index, format, geometry, (out_features, in_features))
    dx, dvalues = x.new_empty(0), x.new_empty(0)
    with torch.autocast(x.device.type, enabled=False):
        if needs_x:
            dx = dispatch.input_gradient(gradient, packed, transposed)
        if needs_values:
            dvalues = dispatch.values_gradient(gradient, x, packed)
    return dx, dvalues


@sparse_linear_backward.register_fake
def _(
    gradient: Tensor,
    x: Tensor,
    values: Tensor,
    index: Sequence[Tensor],
    transposed: Sequence[Tensor],
    format: str,
    geometry: Sequence[int],
    needs_x: bool,
    needs_values: bool,
) -> tuple[Tensor, Tensor]:
    dx = torch.empty_like(x, memory_format=torch.contiguous_format) if needs_x else x.new_empty(0)
    dvalues = torch.empty_like(values) if needs_values else x.new_empty(0)
    return dx, dvalues


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, values, index, bias, transposed, format, geometry, out_features, activation, residual = inputs
    ctx.save_for_backward(x, values, *index, *transposed, *([] if bias is None else [bias]))
    ctx.sizes = len(index), len(transposed)
    ctx.has_bias, ctx.format, ctx.geometry = bias is not None, format, geometry
    ctx.out_features, ctx.activation = out_features, activation
    ctx.has_residual = residual is not None


def _backward(ctx: Any, gradient: Tensor) -> tuple[Any, ...]:
    dresidual = gradient
    x, values, *rest = ctx.saved_tensors
    n_index, n_transposed = ctx.sizes
    index, transposed = rest[:n_index], rest[n_index : n_index + n_transposed]
    bias = rest[-1] if ctx.has_bias else None
    if ctx.activation != "none":
        # Recomputed, not saved: the pre-activation is the widest tensor of a transformer layer.
        arguments = (index, bias, transposed, ctx.format, ctx.geometry, ctx.out_features, "none")
        gradient = reference.activate_backward(gradient, sparse_linear(x, values, *arguments), ctx.activation)
    gradient = gradient.contiguous()
    needs_x, needs_values = ctx.needs_input_grad[0], ctx.needs_input_grad[1]
    dx, dvalues = sparse_linear_backward(
        gradient, x, values, index, transposed, ctx.format, ctx.geometry, needs_x, needs_values
    )
    dbias = None
    if bias is not None and ctx.needs_input_grad[3]:
        dbias = gradient.reshape(-1, gradient.shape[-1]).sum(0, dtype=torch.float32).to(bias.dtype)
    gradients: tuple[Any, ...] = (
        dx if needs_x else None,
        dvalues if needs_values else None,
        [None] * n_index,
        dbias,
        [None] * n_transposed,
        None,
        None if ctx.geometry else [],  # torch treats an empty list as a list of tensors
        None,
        None,
    )
    # torch omits a last argument with its default value and expects no gradient for it.
    return (*gradients, dresidual) if ctx.has_residual else gradients


sparse_linear.register_autograd(_backward, setup_context=_setup_context)
