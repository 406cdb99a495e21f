"""A linear layer under a mask, for ticket training and score training.

The mask is packed, one bit per weight. On a GPU it is applied while the weight is read, without a masked
copy if the weight's sizes are multiples of 16. Masked weights are deselected, not multiplied, so NaN or inf
there does no harm.

    y = x @ W'.T + bias,   W' = where(mask, W, 0),   G = dL/dW' = dL/dy.T @ x

The gradients depend on what is trained:

| method | call | weight gets | scores get |
|---|---|---|---|
| fixed ticket (lottery tickets, fine-tuning) | ``masked_linear(x, W, mask)`` | where(mask, G, 0) | - |
| pruned weights keep learning (dense-to-sparse, RigL) | ``straight_through=True`` | G | - |
| movement: weights and scores | ``scores=S`` | where(mask, G, 0) | G * W |
| Static Model Pruning: only scores | ``scores=S``, W without gradient | - | G * W |

The values of the scores are not read: the caller derives the mask from them. The scores' gradient, dL/dmask =
G * W, is dense, so that pruned weights can be revived.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sparsebert_kernels.bitmask import WORD, pack_bits, selected, unpack_bits

from . import forward_mode, reference
from .cuda import backend
from .ops import AUTOCAST_DTYPES


def pack_mask(mask: Tensor) -> Tensor:
    """Pack ``mask`` (bool [N, K], True = keep) into int32 words [N, ceil(K / 32)] on its device.

    Bit i of word w is column 32 w + i; bits past the last column are 0.

    Raises:
        ValueError: ``mask`` is not a bool matrix.
    """
    if mask.dtype != torch.bool or mask.dim() != 2:
        raise ValueError(
            f"mask must be a torch.bool matrix (True = keep), got {list(mask.shape)} of {mask.dtype}"
        )
    return pack_bits(mask)


def unpack_mask(packed_mask: Tensor, in_features: int) -> Tensor:
    """Unpack the words of ``pack_mask`` into the bool mask [N, in_features].

    Raises:
        ValueError: The words have another shape or dtype.
    """
    words = -(-in_features // WORD)
    if packed_mask.dtype != torch.int32 or packed_mask.dim() != 2 or packed_mask.shape[1] != words:
        raise ValueError(
            f"packed mask is {list(packed_mask.shape)} of {packed_mask.dtype}; "
            f"{in_features} columns need torch.int32 [N, {words}]"
        )
    return unpack_bits(packed_mask, in_features)


def masked_linear(
    x: Tensor,
    weight: Tensor,
    packed_mask: Tensor,
    bias: Tensor | None = None,
    *,
    scores: Tensor | None = None,
    straight_through: bool = False,
) -> Tensor:
    """Return ``x @ where(mask, weight, 0).T + bias``.

    The kernels of a GPU sum in float32, in a fixed order; float32 products are exact unless torch is set to
    allow TF32. Elsewhere, and for y and dL/dx of a weight whose sizes are not multiples of 16, torch
    multiplies a masked copy and sums as its settings allow: on a GPU, partial sums of half precision are
    rounded to it by default (``torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction``).

    Under autocast only x is cast, so that the weight needs no copy. The gradient of the scores reads every
    weight, so a NaN or inf weight has a NaN or inf score gradient; nothing else reads a masked weight.

    Args:
        x: [..., K] in float32, bfloat16 or float16 on a GPU, in any floating-point dtype elsewhere.
        weight: [N, K] in the dtype of x, or float32 for half-precision x. The float32 weight is rounded as it
            is read, and its gradient is float32.
        packed_mask: Mask of the weight, packed by ``pack_mask``.
        bias: [N] or None.
        scores: [N, K] in a floating-point dtype, or None. Receives the gradient dL/dmask = dL/dW' * weight;
            its values are not read.
        straight_through: Give pruned weights the gradient dL/dW' instead of zero.

    Returns:
        [..., N] in the dtype of x.

    Raises:
        ValueError: Shapes, dtypes or devices do not fit together.
    """
    if torch.is_autocast_enabled(x.device.type) and x.dtype in AUTOCAST_DTYPES:
        x = x.to(torch.get_autocast_dtype(x.device.type))
        if weight.dtype not in (x.dtype, torch.float32):
            weight = weight.to(x.dtype)
    _check(x, weight, packed_mask, bias, scores)
    flat = x.reshape(-1, x.shape[-1])
    if forward_mode.is_active():
        if scores is not None or straight_through:
            raise ValueError("masked_linear has no forward-mode derivative with scores or straight_through")
        kept = torch.where(unpack_bits(packed_mask, weight.shape[1]), weight, weight.new_zeros(()))
        return reference.linear(x, kept, bias)
    y = _masked_linear(flat, weight, packed_mask, bias, scores, straight_through)
    return y.view(*x.shape[:-1], weight.shape[0])


def _check(
    x: Tensor, weight: Tensor, packed_mask: Tensor, bias: Tensor | None, scores: Tensor | None
) -> None:
    """Raise ValueError for arguments that the kernels would not check."""
    if weight.dim() != 2 or weight.numel() == 0:
        raise ValueError(f"weight has shape {list(weight.shape)}; it must be a non-empty matrix [out, in]")
    N, K = weight.shape
    if x.shape[-1:] != (K,):
        raise ValueError(f"x has shape {list(x.shape)}; its last dimension must be {K}")
    if not x.is_floating_point():
        raise ValueError(f"x is {x.dtype}; it must have a floating-point dtype")
    wide = weight.dtype == torch.float32 and x.dtype in (torch.float16, torch.bfloat16)
    if weight.dtype != x.dtype and not wide:
        raise ValueError(f"weight is {weight.dtype}, x {x.dtype}; it must be {x.dtype} or torch.float32")
    if packed_mask.dtype != torch.int32 or packed_mask.shape != (N, -(-K // WORD)):
        raise ValueError(
            f"packed mask is {list(packed_mask.shape)} of {packed_mask.dtype}; "
            f"it must be {[N, -(-K // WORD)]} of torch.int32, as pack_mask returns"
        )
    if bias is not None and bias.shape != (N,):
        raise ValueError(f"bias has shape {list(bias.shape)}; it must be [{N}]")
    if scores is not None and (scores.shape != weight.shape or not scores.is_floating_point()):
        raise ValueError(
            f"scores are {list(scores.shape)} of {scores.dtype}; they must be {[N, K]}, floating-point"
        )
    tensors = (("weight", weight), ("packed mask", packed_mask), ("bias", bias), ("scores", scores))
    for name, tensor in tensors:
        if tensor is not None and tensor.device != x.device:
            raise ValueError(f"{name} is on {tensor.device}, x on {x.device}")


@torch.library.custom_op("sparsebert::masked_linear", mutates_args=())
def _masked_linear(
    x: Tensor,
    weight: Tensor,
    packed_mask: Tensor,
    bias: Tensor | None,
    scores: Tensor | None,
    straight_through: bool,
) -> Tensor:
    forward_mode.refuse("sparsebert::masked_linear")
    if kernels := _kernels(x, weight):
        return kernels.forward(x, weight, packed_mask, bias)
    with torch.autocast(x.device.type, enabled=False):
        return reference.linear(x, _masked(weight.to(x.dtype), packed_mask), bias)


@_masked_linear.register_fake
def _(
    x: Tensor,
    weight: Tensor,
    packed_mask: Tensor,
    bias: Tensor | None,
    scores: Tensor | None,
    straight_through: bool,
) -> Tensor:
    return x.new_empty(x.shape[0], weight.shape[0])


@torch.library.custom_op("sparsebert::masked_linear_backward", mutates_args=())
def _masked_linear_backward(
    gradient: Tensor,
    x: Tensor,
    weight: Tensor,
    packed_mask: Tensor,
    straight_through: bool,
    needs_x: bool,
    needs_weight: bool,
    scores_dtype: torch.dtype | None,
) -> tuple[Tensor, Tensor, Tensor]:
    forward_mode.refuse("sparsebert::masked_linear_backward")
    dx, dweight = x.new_empty(0), weight.new_empty(0)
    dscores = weight.new_empty(0, dtype=scores_dtype or weight.dtype)
    with torch.autocast(x.device.type, enabled=False):
        if needs_x:
            dx = _input_gradient(gradient, weight, packed_mask)
        if backend.runs_on(x) and (needs_weight or scores_dtype):
            from .cuda import masked_gradient

            dweight, dscores = masked_gradient.weight_gradients(
                gradient,
                x,
                weight,
                packed_mask,
                needs_weight=needs_weight,
                straight_through=straight_through,
                scores_dtype=scores_dtype,
            )
        elif needs_weight or scores_dtype:
            wide = torch.promote_types(x.dtype, torch.float32)
            full = gradient.to(wide).t() @ x.to(wide)
            if needs_weight:
                kept = full if straight_through else _masked(full, packed_mask)
                dweight = kept.to(weight.dtype)
            if scores_dtype:
                dscores = (full * weight).to(scores_dtype)
    return dx, dweight, dscores


@_masked_linear_backward.register_fake
def _(
    gradient: Tensor,
    x: Tensor,
    weight: Tensor,
    packed_mask: Tensor,
    straight_through: bool,
    needs_x: bool,
    needs_weight: bool,
    scores_dtype: torch.dtype | None,
) -> tuple[Tensor, Tensor, Tensor]:
    shape = weight.shape
    return (
        x.new_empty(x.shape if needs_x else 0),
        weight.new_empty(shape if needs_weight else 0),
        weight.new_empty(shape if scores_dtype else 0, dtype=scores_dtype or weight.dtype),
    )


def _kernels(x: Tensor, weight: Tensor) -> Any:
    """Return the module that multiplies with a weight; None where torch multiplies a masked copy."""
    if not backend.runs_on(x):
        return None
    from .cuda import masked as kernels

    return kernels if kernels.suits(weight) else None


def _input_gradient(gradient: Tensor, weight: Tensor, packed_mask: Tensor) -> Tensor:
    """Return ``gradient @ where(mask, weight, 0)`` in the dtype of the gradient."""
    if kernels := _kernels(gradient, weight):
        return kernels.input_gradient(gradient, weight, packed_mask)
    return gradient @ _masked(weight.to(gradient.dtype), packed_mask)


def _masked(matrix: Tensor, packed_mask: Tensor) -> Tensor:
    return selected(matrix, unpack_bits(packed_mask, matrix.shape[1]))


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, weight, packed_mask, bias, scores, straight_through = inputs
    ctx.save_for_backward(x, weight, packed_mask)
    ctx.bias_dtype = None if bias is None else bias.dtype
    ctx.scores_dtype = None if scores is None else scores.dtype
    ctx.straight_through = straight_through


def _backward(ctx: Any, gradient: Tensor) -> tuple[Any, ...]:
    x, weight, packed_mask = ctx.saved_tensors
    needs_x, needs_weight, _, needs_bias, needs_scores, *_ = ctx.needs_input_grad
    gradient = gradient.contiguous()
    dx, dweight, dscores = _masked_linear_backward(
        gradient,
        x,
        weight,
        packed_mask,
        ctx.straight_through,
        needs_x,
        needs_weight,
        ctx.scores_dtype if needs_scores else None,
    )
    wide = torch.promote_types(gradient.dtype, torch.float32)
    return (
        dx if needs_x else None,
        dweight if needs_weight else None,
        None,
        gradient.sum(0, dtype=wide).to(ctx.bias_dtype) if needs_bias else None,
        dscores if needs_scores else None,
        None,
    )


_masked_linear.register_autograd(_backward, setup_context=_setup_context)
