"""The torch operators over packed weights: the one place that knows every backend.

`linear` is what users call. Behind it stands one custom operator for all formats, ``sparsebert::linear``,
with its fake and autograd registrations, so that eager mode, `torch.compile`, `torch.export` and autograd see
the same thing. On a CPU the native library is used where it serves a format, on a GPU the Triton kernels;
everything else is plain torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch._C import _get_tracing_state, _len_torch_dispatch_stack, _len_torch_function_stack
from torch._C._functorch import peek_interpreter_stack

from sparsebert_kernels.errors import unknown

from . import reference
from .cpu import native
from .cuda import backend as cuda
from .formats import FORMATS, ElementSparse, PackedWeight, PanelSparse, VectorSparse
from .formats.element import BLOCK_COLUMNS, BLOCK_ROWS
from .formats.panel import joining_fails
from .formats.transpose import transposed_index

TRAINABLE = (ElementSparse, VectorSparse, PanelSparse)
COMPUTED_DTYPES = (torch.float32, torch.bfloat16)
AUTOCAST_DTYPES = (torch.float32, torch.bfloat16, torch.float16)  # as in torch, float64 stays what it is


def linear(
    x: Tensor,
    packed: PackedWeight,
    bias: Tensor | None = None,
    activation: str = "none",
    transposed: Sequence[Tensor] = (),
    residual: Tensor | None = None,
) -> Tensor:
    """``activation(x @ W.T + bias) + residual`` for a packed W.

    x           [..., in_features], float32, bfloat16, float16 or float64. On a CPU float16 is computed in
                float32; float64 goes through the dense matrix. The GPU kernels want the dtype of W.
    bias        [out_features] or None
    activation  "none", "relu", "gelu" (erf), "gelu_tanh" or "tanh"
    transposed  `transposed_index(packed)`, kept by trainable layers: the backward pass need not make it then
    residual    [..., out_features] in the dtype of the result, or None

    Returns [..., out_features] in the dtype of x, under autocast in autocast's dtype (not for float64). A
    pruned column never reads its activation, so NaN or inf there does not spread; next to a kept weight, inf
    may come out as NaN.

    Raises ValueError for an x of another width, dtype or device than the weight's, a bias of another length,
    a residual of another shape or dtype than the result, and an unknown activation.
    """
    # The short way for the most frequent call: a small layer takes no longer than the questions below.
    if (
        residual is None
        and plain_inference(x, packed.values, bias)
        and native.serves(packed.name, packed.values.dtype, x)
        and (outputs := native.linear(x, (packed,), (bias,), activation)) is not None
    ):
        return outputs[0]
    _check(x, packed, bias, activation)
    on_gpu = cuda.covers(packed.name, x.device)
    if torch.is_autocast_enabled(x.device.type) and x.dtype in AUTOCAST_DTYPES:
        x = x.to(torch.get_autocast_dtype(x.device.type))
        residual = None if residual is None else residual.to(x.dtype)
        if on_gpu:
            packed = packed.replace(values=packed.values.to(x.dtype))
    _check_residual(residual, x, packed)
    if on_gpu:
        cuda.check_dtype(x, packed)
    computed = cuda.DTYPES if on_gpu or x.is_cuda else COMPUTED_DTYPES
    if x.dtype in computed and plain_inference(x, packed.values, bias, residual):
        return _compute(x, packed, bias, activation, residual)
    if x.dtype == torch.float16 and x.dtype not in computed:
        y = linear(x.float(), packed, bias, activation, transposed).half()
        return y if residual is None else y + residual
    if x.dtype == torch.float64:
        y = reference.linear(x, packed.to_dense(), bias, activation)
        return y if residual is None else y + residual
    if x.dtype not in computed:
        raise ValueError(f"x is {x.dtype}; a floating-point dtype is needed")
    index = [getattr(packed, name) for name in packed.TENSORS[1:]]
    geometry = [int(getattr(packed, name)) for name in packed.GEOMETRY]
    return _linear(
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


def block_sparse_linear(
    x: Tensor,
    weight: PanelSparse,
    bias: Tensor | None = None,
    activation: str = "none",
    residual: Tensor | None = None,
) -> Tensor:
    """``activation(x @ W.T + bias) + residual`` for a weight in packed panels, in one kernel on a GPU.

    x         [..., in_features], float32, bfloat16 or float16 like the weight's values
    bias      [out_features] or None, in any floating-point dtype
    residual  [..., out_features] in the dtype of x, or None

    Sums are float32. Products of float32 are exact (ieee), unless torch is allowed TensorFloat-32
    (`torch.set_float32_matmul_precision("high")`). Errors and everything else as for `linear`, which
    also takes the transposed index: without it each backward pass makes it anew, and waits for the device.
    """
    if not isinstance(weight, PanelSparse):
        raise ValueError(
            f"weight is {type(weight).__name__}; PanelSparse.from_dense packs a block-sparse one"
        )
    return linear(x, weight, bias, activation, residual=residual)


def can_share(packed: Sequence[PackedWeight]) -> bool:
    """Whether `linear_shared` can serve all of these weights in one call where there are kernels."""
    first = packed[0]
    if any(type(weight) is not type(first) for weight in packed):
        return False
    if isinstance(first, PanelSparse):
        return joining_fails(packed) is None  # type: ignore[arg-type]
    native_format = isinstance(first, ElementSparse | VectorSparse)
    return native_format and all(native.same_call(first, other) for other in packed)


def linear_shared(
    x: Tensor,
    packed: Sequence[PackedWeight],
    biases: Sequence[Tensor | None],
    joined: PanelSparse | None = None,
    joined_bias: Tensor | None = None,
) -> tuple[Tensor, ...]:
    """`linear` of one x with several weights of the same format, as one native call that reads x once.

    For inference: where a gradient is needed, or the native library does not serve the format, it is the same
    as calling `linear` once a weight.

    joined       on a GPU, the same weights as one (`formats.panel.join`), kept by the caller: one launch,
                 whose answers are slices of one tensor
    joined_bias  the biases as one, which saves putting them together in each call

    Raises ValueError for what `linear` refuses, and for a ``joined`` that is not as high as its members.
    """
    if joined is not None and cuda.covers(joined.name, x.device) and plain_inference(x, *biases):
        return _linear_joined(x, packed, biases, joined, joined_bias)
    together = (
        1 < len(packed) <= native.MAX_WEIGHTS
        and plain_inference(x, *(p.values for p in packed), *biases)
        and native.serves(packed[0].name, packed[0].values.dtype, x)
        and all(native.same_call(packed[0], other) for other in packed[1:])
    )
    if together and (outputs := native.linear(x, packed, biases, "none")) is not None:
        return tuple(outputs)
    return tuple(linear(x, p, b) for p, b in zip(packed, biases, strict=True))


def _linear_joined(
    x: Tensor,
    packed: Sequence[PackedWeight],
    biases: Sequence[Tensor | None],
    joined: PanelSparse,
    joined_bias: Tensor | None,
) -> tuple[Tensor, ...]:
    heights = [weight.shape[0] for weight in packed]
    if sum(heights) != joined.shape[0]:
        raise ValueError(f"joined has {joined.shape[0]} out_features, its members have {sum(heights)}")
    for weight, bias in zip(packed, biases, strict=True):
        _check(x, weight, bias, "none")
    if joined_bias is None and any(bias is not None for bias in biases):
        rows = zip(biases, heights, strict=True)
        parts = [x.new_zeros(height) if bias is None else bias.to(x.dtype) for bias, height in rows]
        joined_bias = torch.cat(parts)
    return linear(x, joined, joined_bias).split(heights, -1)


def _check(x: Tensor, packed: PackedWeight, bias: Tensor | None, activation: str) -> None:
    """Raises ValueError for what fits neither the weight nor any kernel."""
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


def plain_inference(x: Tensor, *others: Tensor | None) -> bool:
    """Whether nobody watches this call: no gradient, autocast, compiler, tracer or tensor subclass.

    The result may then be computed directly, which saves the operator's dispatch, 15 us a call. To be asked
    before anything of the native library, whose loader a compiler cannot trace.
    """
    if torch.compiler.is_compiling() or type(x) is not Tensor or x.is_meta:
        return False
    if torch.is_autocast_enabled("cpu" if x.is_cpu else x.device.type):
        return False
    if _len_torch_dispatch_stack() or _len_torch_function_stack():
        return False
    if peek_interpreter_stack() is not None or _get_tracing_state() is not None:
        return False
    if not torch.is_grad_enabled():
        return True
    return not (x.requires_grad or any(t is not None and t.requires_grad for t in others))


def _rebuild(
    values: Tensor, index: Sequence[Tensor], format: str, geometry: Sequence[int], shape: tuple[int, int]
) -> PackedWeight:
    cls = FORMATS[format]
    tensors = dict(zip(cls.TENSORS, (values, *index), strict=True))
    return cls(shape, tensors, dict(zip(cls.GEOMETRY, geometry, strict=True)))


@torch.library.custom_op("sparsebert::linear", mutates_args=())
def _linear(
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
    packed = _rebuild(values, index, format, geometry, (out_features, x.shape[-1]))
    with torch.autocast(x.device.type, enabled=False):  # `linear` has seen to it, in the dtype of x
        return _compute(x, packed, bias, activation, residual)


@_linear.register_fake
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
    return x.new_empty((*x.shape[:-1], out_features))


def _compute(
    x: Tensor, packed: Any, bias: Tensor | None, activation: str, residual: Tensor | None = None
) -> Tensor:
    values = packed.values
    if cuda.serves(packed.name, x):
        return cuda.linear(x, packed, bias, activation, residual)
    if residual is not None:
        return _compute(x, packed, bias, activation) + residual
    if activation == "tanh":  # of the pooler and of no kernel here
        return torch.tanh(_compute(x, packed, bias, "none"))
    if native.serves(packed.name, values.dtype, x):
        outputs = native.linear(x, (packed,), (bias,), activation)
        if outputs is not None:
            return outputs[0]
    if packed.name == "dense" and values.is_mkldnn and x.dtype == values.dtype:
        return _prepacked_linear(x, values, bias, activation)
    if packed.name == "compact":
        return _compact_linear(x, packed, bias, activation)
    if packed.name == "csr" and x.dtype == values.dtype == torch.float32:
        out = reference.csr_linear(x.reshape(-1, x.shape[-1]), packed.tensor(), bias, activation)
        return out.view(*x.shape[:-1], packed.shape[0])
    return reference.linear(x, packed.to_dense(), bias, activation)


def _prepacked_linear(x: Tensor, values: Tensor, bias: Tensor | None, activation: str) -> Tensor:
    bias = None if bias is None else bias.to(x.dtype)
    fused = {
        "none": ("none", ""),
        "relu": ("relu", ""),
        "gelu": ("gelu", "none"),
        "gelu_tanh": ("gelu", "tanh"),
    }
    name, algorithm = fused[activation]
    if not x.numel():
        return x.new_empty((*x.shape[:-1], values.shape[0]))
    return torch.ops.mkldnn._linear_pointwise(x, values, bias, name, [], algorithm)


def _compact_linear(x: Tensor, packed: Any, bias: Tensor | None, activation: str) -> Tensor:
    out_features = packed.shape[0]
    empty = x.new_zeros(out_features) if bias is None else bias.to(x.dtype)
    out = reference.activate(empty, activation).expand(*x.shape[:-1], out_features).clone()
    if packed.values.numel() and x.numel():
        x = x.index_select(-1, packed.live_columns)
        bias = None if bias is None else bias[packed.live_rows]
        rectangle = packed.rectangle()
        live = (
            _prepacked_linear(x, rectangle.values, bias, activation)
            if rectangle.values.is_mkldnn and x.dtype == rectangle.dtype
            else reference.linear(x, rectangle.to_dense(), bias, activation)
        )
        out.index_copy_(-1, packed.live_rows, live)
    return out


@torch.library.custom_op("sparsebert::linear_backward", mutates_args=())
def _linear_backward(
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
    out_features, in_features = gradient.shape[-1], x.shape[-1]
    packed = _rebuild(values, index, format, geometry, (out_features, in_features))
    dx, dvalues = x.new_empty(0), x.new_empty(0)
    with torch.autocast(x.device.type, enabled=False):
        if needs_x:
            dx = _input_gradient(gradient, packed, transposed)
        if needs_values:
            dvalues = _values_gradient(gradient, x, packed)
    return dx, dvalues


@_linear_backward.register_fake
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


def _input_gradient(gradient: Tensor, packed: PackedWeight, transposed: Sequence[Tensor]) -> Tensor:
    """dL/dx = gradient @ W, through the transposed structure where the format has one."""
    if cuda.serves(packed.name, gradient):
        return cuda.input_gradient(gradient, packed, transposed)
    if not isinstance(packed, ElementSparse | VectorSparse):
        return reference.linear(gradient, packed.to_dense().t(), None)
    source, *flipped = transposed or transposed_index(packed)
    values = packed.values.flatten()[source]
    tensors = dict(zip(ElementSparse.TENSORS, (values, *flipped), strict=True))
    blocks = {"block_rows": BLOCK_ROWS, "block_columns": BLOCK_COLUMNS}
    return _compute(
        gradient, ElementSparse((packed.shape[1], packed.shape[0]), tensors, blocks), None, "none"
    )


def _values_gradient(gradient: Tensor, x: Tensor, packed: Any) -> Tensor:
    """dL/dvalues in the layout of ``packed.values``: zero in slack and padding."""
    if not isinstance(packed, TRAINABLE):
        known = ", ".join(repr(cls.name) for cls in TRAINABLE)
        raise ValueError(f"weights in format {packed.name!r} cannot be trained; these can: {known}")
    if cuda.serves(packed.name, gradient):
        return cuda.values_gradient(gradient, x, packed)
    if native.serves(packed.name, packed.dtype, x):
        return native.values_gradient(gradient, x, packed)
    gradient, x = gradient.reshape(-1, gradient.shape[-1]), x.reshape(-1, x.shape[-1])
    row, column = packed.coordinates()
    kept = row < packed.shape[0]
    kept[1:] &= (row[1:] != row[:-1]) | (column[1:] != column[:-1])
    flat = torch.zeros(packed.values.numel(), dtype=torch.float32, device=x.device)
    slots = kept.nonzero().squeeze(1)
    flat[slots] = reference.values_gradient(gradient, x, row[slots], column[slots])
    return flat.view(packed.values.shape).to(packed.dtype)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, values, index, bias, transposed, format, geometry, out_features, activation, residual = inputs
    ctx.save_for_backward(x, values, *index, *transposed, *([] if bias is None else [bias]))
    ctx.sizes = len(index), len(transposed)
    ctx.has_bias, ctx.format, ctx.geometry = bias is not None, format, geometry
    ctx.out_features, ctx.activation = out_features, activation
    ctx.has_residual = residual is not None


def _backward(ctx: Any, gradient: Tensor) -> tuple[Any, ...]:
    whole = gradient
    x, values, *rest = ctx.saved_tensors
    n_index, n_transposed = ctx.sizes
    index, transposed = rest[:n_index], rest[n_index : n_index + n_transposed]
    bias = rest[-1] if ctx.has_bias else None
    if ctx.activation != "none":
        # Recomputed instead of saved: the pre-activation is the widest tensor of a transformer layer.
        arguments = (index, bias, transposed, ctx.format, ctx.geometry, ctx.out_features, "none")
        gradient = reference.activate_backward(gradient, _linear(x, values, *arguments), ctx.activation)
    gradient = gradient.contiguous()
    needs_x, needs_values = ctx.needs_input_grad[0], ctx.needs_input_grad[1]
    dx, dvalues = _linear_backward(
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
        None if ctx.geometry else [],  # torch takes an empty list for a list of tensors
        None,
        None,
    )
    # torch leaves out a last argument that has its default value, and wants no gradient for it.
    return (*gradients, whole) if ctx.has_residual else gradients


_linear.register_autograd(_backward, setup_context=_setup_context)
