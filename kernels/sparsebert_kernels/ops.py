"""Linear layers over packed weights: the public operators.

``linear`` computes one layer, ``linear_shared`` several layers over the same input. In plain inference they
call the backend directly (``dispatch``); otherwise they go through the custom operator that autograd and
compilers see (``linear_operator``).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch._C import _get_tracing_state, _len_torch_dispatch_stack, _len_torch_function_stack
from torch._C._functorch import peek_interpreter_stack
from torch._functorch.pyfunctorch import temporarily_clear_interpreter_stack

from . import forward_mode, linear_operator, reference
from .cpu import fp16, native
from .cuda import backend as cuda
from .dispatch import TRAINABLE, compute
from .errors import unknown
from .formats import ElementSparse, PackedWeight, PanelSparse, RowPanelSparse, VectorInt8, VectorSparse
from .formats.panel import why_not_joinable

__all__ = [
    "AUTOCAST_DTYPES",
    "TRAINABLE",
    "block_sparse_linear",
    "can_share",
    "linear",
    "linear_in_precision_of_weight",
    "linear_shared",
    "plain_inference",
    "rounded_for",
]

COMPUTED_DTYPES = (torch.float32, torch.bfloat16)  # of x on a CPU
AUTOCAST_DTYPES = (
    torch.float32,
    torch.bfloat16,
    torch.float16,
)  # autocast leaves float64 as it is, as in torch


def linear(
    x: Tensor,
    packed: PackedWeight,
    bias: Tensor | None = None,
    activation: str = "none",
    transposed: Sequence[Tensor] = (),
    residual: Tensor | None = None,
) -> Tensor:
    """Return ``activation(x @ W.T + bias) + residual`` for a packed W.

    A pruned column never reads its activation, so NaN or inf there does not spread; in a kept column, inf may
    become NaN. Under the transforms of ``torch.func`` (vmap, grad, ...) the dense matrix is multiplied.

    Args:
        x: [..., in_features] in float32, bfloat16, float16 or float64. On a CPU, float16 is computed in
            float32 and float64 through the dense matrix. The GPU kernels require the dtype of W.
        packed: W [out_features, in_features].
        bias: [out_features] or None.
        activation: "none", "relu", "gelu" (erf), "gelu_tanh" or "tanh".
        transposed: ``transposed_index(packed)``, which trainable layers keep so that the backward pass need
            not compute it.
        residual: [..., out_features] in the dtype of the result, or None.

    Returns:
        [..., out_features] in the dtype of x; under autocast in autocast's dtype, except for float64.

    Raises:
        ValueError: x differs from the weight in width, dtype or device; the bias has the wrong length; the
            residual differs from the result in shape or dtype; or the activation is unknown.
    """
    observed = _is_observed(x)
    plain = not observed and not _needs_gradient(x, packed.values, bias, residual)
    # Shortcuts for the most frequent calls: the checks below take as long as a small layer.
    if not observed and (quick := cuda.quick_call(x, packed, bias, activation, residual)) is not None:
        if plain:
            return quick(x, packed, bias, activation, residual)
        return linear_operator.call_eagerly(x, packed, bias, transposed, activation, residual, quick)
    if (
        plain
        and residual is None
        and native.supports(packed.name, packed.values.dtype, x)
        and (outputs := native.linear(x, (packed,), (bias,), activation)) is not None
    ):
        return outputs[0]
    _check(x, packed, bias, activation)
    on_gpu = cuda.covers(packed.name, x.device)
    if observed and torch.is_autocast_enabled(x.device.type) and x.dtype in AUTOCAST_DTYPES:
        x = x.to(torch.get_autocast_dtype(x.device.type))
        residual = None if residual is None else residual.to(x.dtype)
        if on_gpu:
            packed = packed.replace(values=packed.values.to(x.dtype))
    _check_residual(residual, x, packed)
    if on_gpu:
        cuda.check_dtype(x, packed)
    if observed and _is_transformed():
        y = reference.linear(x, _dense_in_transform(packed).to(x.dtype), bias, activation)
        return y if residual is None else y + residual
    computed = cuda.DTYPES if on_gpu or x.is_cuda else COMPUTED_DTYPES
    if plain and x.dtype in computed:
        return compute(x, packed, bias, activation, residual)
    if x.dtype == torch.float16 and x.dtype not in computed:
        if plain and fp16.supports(packed, x):
            return compute(x, packed, bias, activation, residual)
        y = linear(x.float(), packed, bias, activation, transposed).half()
        return y if residual is None else y + residual
    if x.dtype not in (*computed, torch.float64):
        raise ValueError(f"x is {x.dtype}; it must have a floating-point dtype")
    if x.dtype == torch.float64 or forward_mode.is_active():
        y = reference.linear(x, packed.to_dense(), bias, activation)
        return y if residual is None else y + residual
    call = linear_operator.call if observed else linear_operator.call_eagerly
    return call(x, packed, bias, transposed, activation, residual)


def linear_in_precision_of_weight(
    x: Tensor, packed: PackedWeight, bias: Tensor | None = None, activation: str = "none"
) -> Tensor:
    """Return ``linear`` in the dtype of x, computed in that of W where it is lower (``rounded_for``).

    Arguments and errors are those of ``linear``.
    """
    rounded = rounded_for(x, packed)
    y = linear(rounded, packed, bias, activation)
    return y if rounded is x else y.to(x.dtype)


def rounded_for(x: Tensor, packed: PackedWeight) -> Tensor:
    """Return x, rounded to bfloat16 if W is bfloat16, x has a higher precision, and the product is faster so.

    That holds for dense weights on a CPU, and where the CPU has dot products of bfloat16. Elsewhere, the
    sparse kernels multiply bfloat16 weights with x as it is.
    """
    if not x.is_cpu or x.dtype not in (torch.float32, torch.float16) or packed.dtype != torch.bfloat16:
        return x
    rounds = isinstance(packed, RowPanelSparse)  # the kernel itself
    if native.supports(packed.name, packed.dtype, x) and (rounds or not native.has_bf16_products()):
        return x
    return x.to(torch.bfloat16)


def block_sparse_linear(
    x: Tensor,
    weight: PanelSparse,
    bias: Tensor | None = None,
    activation: str = "none",
    residual: Tensor | None = None,
) -> Tensor:
    """Return ``activation(x @ W.T + bias) + residual`` for a weight in packed panels, in one kernel on a GPU.

    Sums are float32. Products of float32 are exact unless torch is allowed TensorFloat-32
    (``torch.set_float32_matmul_precision("high")``). Each backward pass computes the transposed index and
    waits for the device to do so; ``linear`` accepts a stored index.

    Args:
        x: [..., in_features] in float32, bfloat16 or float16, like the weight's values.
        weight: W [out_features, in_features].
        bias: [out_features] in any floating-point dtype, or None.
        activation: See ``linear``.
        residual: [..., out_features] in the dtype of x, or None.

    Raises:
        ValueError: ``weight`` is in another format; see also ``linear``.
    """
    if not isinstance(weight, PanelSparse):
        raise ValueError(
            f"weight is {type(weight).__name__}; pack a block-sparse weight with PanelSparse.from_dense"
        )
    return linear(x, weight, bias, activation, residual=residual)


def can_share(packed: Sequence[PackedWeight]) -> bool:
    """Return whether ``linear_shared`` can compute all of these weights in one call where kernels exist."""
    first = packed[0]
    if any(type(weight) is not type(first) for weight in packed):
        return False
    if isinstance(first, PanelSparse):
        return why_not_joinable(packed) is None  # type: ignore[arg-type]
    native_format = isinstance(first, ElementSparse | VectorSparse | VectorInt8 | RowPanelSparse)
    return native_format and all(native.same_call(first, other) for other in packed)


def linear_shared(
    x: Tensor, packed: Sequence[PackedWeight], biases: Sequence[Tensor | None]
) -> tuple[Tensor, ...]:
    """Return ``linear`` of one x with several weights of the same format, from one call that reads x once.

    The single call serves inference. If a gradient is needed, or no native kernel supports the format,
    ``linear`` is called once per weight. Panels for a GPU are joined instead (``formats.panel.join``).

    Args:
        x: [..., in_features].
        packed: The weights.
        biases: One bias, or None, per weight.

    Raises:
        ValueError: See ``linear``.
    """
    together = (
        1 < len(packed) <= native.MAX_WEIGHTS
        and plain_inference(x, *(p.values for p in packed), *biases)
        and native.supports(packed[0].name, packed[0].values.dtype, x)
        and all(native.same_call(packed[0], other) for other in packed[1:])
    )
    if together and (outputs := native.linear(x, packed, biases, "none")) is not None:
        return tuple(outputs)
    return tuple(linear(x, p, b) for p, b in zip(packed, biases, strict=True))


def _check(x: Tensor, packed: PackedWeight, bias: Tensor | None, activation: str) -> None:
    """Raise ValueError for arguments that do not fit the weight."""
    if x.dim() == 0 or x.size(-1) != packed.shape[1]:
        raise ValueError(f"x has shape {list(x.shape)}; its last dimension must be {packed.shape[1]}")
    if x.device != packed.values.device:
        raise ValueError(f"x is on {x.device}, the weight on {packed.values.device}")
    if bias is not None:
        if bias.dim() != 1 or bias.size(0) != packed.shape[0]:
            raise ValueError(f"bias has shape {list(bias.shape)}; it must be [{packed.shape[0]}]")
        if bias.device != x.device:
            raise ValueError(f"bias is on {bias.device}, x on {x.device}")
    if activation not in reference.ACTIVATIONS:
        raise unknown("activation", activation, reference.ACTIVATIONS)


def _check_residual(residual: Tensor | None, x: Tensor, packed: PackedWeight) -> None:
    if residual is None:
        return
    shape = (*x.shape[:-1], packed.shape[0])
    if residual.shape != shape or residual.dtype != x.dtype or residual.device != x.device:
        raise ValueError(
            f"residual is {list(residual.shape)} of {residual.dtype} on {residual.device}; "
            f"it must be {list(shape)} of {x.dtype} on {x.device}"
        )


def _is_transformed() -> bool:
    """Whether a transform of ``torch.func`` (vmap, grad, ...) sees this call; no kernel can run then."""
    return not torch.compiler.is_compiling() and peek_interpreter_stack() is not None


def _dense_in_transform(packed: PackedWeight) -> Tensor:
    """Return the dense matrix inside a transform, differentiable where the values can be trained."""
    if isinstance(packed, TRAINABLE):
        return packed.to_dense()
    # No transform knows oneDNN's layout or copies in place.
    with temporarily_clear_interpreter_stack():
        return packed.to_dense()


def plain_inference(x: Tensor, *others: Tensor | None) -> bool:
    """Return whether no gradient, autocast, compiler, tracer or tensor subclass observes this call.

    The result may then be computed directly, which saves 15 us of operator dispatch per call. Call this
    before any function of the native library, whose loader a compiler cannot trace.
    """
    return not _is_observed(x) and not _needs_gradient(x, *others)


def _is_observed(x: Tensor) -> bool:
    """Return whether autocast, a compiler, tracer, transform, mode or tensor subclass observes a call."""
    return (
        torch.compiler.is_compiling()
        or type(x) is not Tensor
        or x.is_meta
        or torch.is_autocast_enabled("cpu" if x.is_cpu else x.device.type)
        or forward_mode.is_active()
        or _len_torch_dispatch_stack() > 0
        or _len_torch_function_stack() > 0
        or peek_interpreter_stack() is not None
        or _get_tracing_state() is not None
    )


def _needs_gradient(*tensors: Tensor | None) -> bool:
    """Return whether autograd records a call with these tensors."""
    if not torch.is_grad_enabled():
        return False
    for tensor in tensors:  # noqa: SIM110  (a generator takes a microsecond)
        if tensor is not None and tensor.requires_grad:
            return True
    return False
