"""``sparsebert::linear``: one custom operator for all formats, with its fake and autograd registrations.

``torch.compile``, ``torch.export``, tracers, modes and tensor subclasses see this operator. Its arguments are
plain tensors and numbers, from which ``_rebuild`` makes a packed weight. A plain call that autograd alone
observes takes ``call_eagerly``, the same computation without the operator, whose dispatch in Python takes
longer on the host than all else.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
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
    return sparse_linear(
        x,
        packed.values,
        _index(packed),
        bias,
        list(transposed),
        packed.name,
        _geometry(packed),
        packed.shape[0],
        activation,
        residual,
    )


def call_eagerly(
    x: Tensor,
    packed: PackedWeight,
    bias: Tensor | None,
    transposed: Sequence[Tensor],
    activation: str,
    residual: Tensor | None,
    quick: Callable[..., Tensor] | None = None,
) -> Tensor:
    """Compute as ``call`` does, for calls that nothing but autograd observes; through ``quick`` if given."""
    constant = packed, transposed, activation, quick
    y: Tensor = _EagerLinear.apply(x, packed.values, bias, residual, constant)
    return y


# The private base of ``torch.autograd.Function``: it lacks the checks for transforms of ``torch.func``, which
# never come here and whose checks take as long as a launch.
_Function: Any = getattr(torch.autograd.function, "_SingleLevelFunction", torch.autograd.Function)


class _EagerLinear(_Function):
    """The computation of ``sparse_linear`` and its gradients, over a packed weight."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        values: Tensor,
        bias: Tensor | None,
        residual: Tensor | None,
        constant: tuple[Any, ...],
    ) -> Tensor:
        packed, _, activation, quick = constant
        ctx.save_for_backward(_saved_input(x, activation, values.requires_grad), values, bias)
        ctx.constant = constant
        if quick is not None:
            return quick(x, packed, bias, activation, residual)
        return dispatch.compute(x, packed, bias, activation, residual)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, values, bias = ctx.saved_tensors
        packed, transposed, activation, _ = ctx.constant
        needs_x, needs_values, needs_bias, needs_residual, _ = ctx.needs_input_grad
        weight = values, _index(packed), transposed, packed.name, _geometry(packed), packed.shape[1]
        gradients = _gradients(gradient, x, weight, bias, activation, (needs_x, needs_values, needs_bias))
        return *gradients, gradient if needs_residual else None, None


def _saved_input(x: Tensor, activation: str, needs_values: bool) -> Tensor | None:
    """Return x if the backward pass reads it: for the gradient of the values, or to recompute y."""
    return x if needs_values or activation != "none" else None


def _index(packed: PackedWeight) -> list[Tensor]:
    return [getattr(packed, name) for name in packed.TENSORS[1:]]


def _geometry(packed: PackedWeight) -> list[int]:
    return [int(getattr(packed, name)) for name in packed.GEOMETRY]


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
    # Here ``needs_input_grad`` has an entry for each tensor of a list, behind those of x and values.
    saved = _saved_input(x, activation, ctx.needs_input_grad[1])
    ctx.save_for_backward(saved, values, *index, *transposed, *([] if bias is None else [bias]))
    ctx.sizes, ctx.in_features = (len(index), len(transposed)), x.shape[-1]
    ctx.has_bias, ctx.format, ctx.geometry = bias is not None, format, geometry
    ctx.out_features, ctx.activation = out_features, activation
    ctx.has_residual = residual is not None


def _backward(ctx: Any, gradient: Tensor) -> tuple[Any, ...]:
    x, values, *rest = ctx.saved_tensors
    n_index, n_transposed = ctx.sizes
    index, transposed = rest[:n_index], rest[n_index : n_index + n_transposed]
    bias = rest[-1] if ctx.has_bias else None
    needs_x, needs_values, _, needs_bias, *_ = ctx.needs_input_grad
    weight = values, index, transposed, ctx.format, ctx.geometry, ctx.in_features
    dx, dvalues, dbias = _gradients(
        gradient, x, weight, bias, ctx.activation, (needs_x, needs_values, needs_bias)
    )
    gradients: tuple[Any, ...] = (
        dx,
        dvalues,
        [None] * n_index,
        dbias,
        [None] * n_transposed,
        None,
        None if ctx.geometry else [],  # torch treats an empty list as a list of tensors
        None,
        None,
    )
    # torch omits a last argument with its default value and expects no gradient for it.
    return (*gradients, gradient) if ctx.has_residual else gradients


def _gradients(
    gradient: Tensor,
    x: Tensor | None,
    weight: tuple[Any, ...],
    bias: Tensor | None,
    activation: str,
    needs: tuple[bool, bool, bool],
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Return the gradients of x, values and bias, None where not needed.

    Args:
        gradient: dL/dy [..., out].
        x: [..., in], or None; see ``_saved_input``.
        weight: Values, index, transposed index, format and geometry, as the operator takes them, and the
            number of columns.
        bias: [out] or None.
        activation: The activation of y.
        needs: Whether x, values and bias need one.
    """
    values, index, transposed, format, geometry, in_features = weight
    if x is None:  # the operator reads its shape alone
        x = gradient.new_empty(1).expand(*gradient.shape[:-1], in_features)
    if activation != "none":
        # Recomputed, not saved: the pre-activation is the widest tensor of a transformer layer.
        out_features = gradient.shape[-1]
        z = sparse_linear(x, values, index, bias, transposed, format, geometry, out_features, "none")
        gradient = reference.activate_backward(gradient, z, activation)
    gradient = gradient.contiguous()
    needs_x, needs_values, needs_bias = needs
    dx, dvalues = sparse_linear_backward(
        gradient, x, values, index, transposed, format, geometry, needs_x, needs_values
    )
    dbias = None
    if bias is not None and needs_bias:
        dbias = gradient.reshape(-1, gradient.shape[-1]).sum(0, dtype=torch.float32).to(bias.dtype)
    return dx if needs_x else None, dvalues if needs_values else None, dbias


sparse_linear.register_autograd(_backward, setup_context=_setup_context)
