"""The matrices of an encoder's layer for the native engine in bfloat16: row panels, heads of whole panels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from sparsebert.compaction.live_rectangle import RectangleLinear
from sparsebert.nn.sparse_linear import SparseLinear
from sparsebert_kernels.cpu import encoder as kernels
from sparsebert_kernels.cpu.encoder import HeadGroup
from sparsebert_kernels.cpu.row_panels import pack_row_panels, pad_rows, padded_heads
from sparsebert_kernels.formats import PackedWeight

ENGINE_DTYPE = torch.bfloat16
SCORE, VALUE = 1, 2  # fields of HeadGroup


def paired_matrices(
    linears: Sequence[Any], heads: Sequence[HeadGroup]
) -> tuple[list[PackedWeight], list[Tensor | None], list[HeadGroup]]:
    """Return weights, biases and heads of a layer for the engine.

    Args:
        linears: Query, key, value, attention output, up and down.
        heads: The heads, in the order of the projections' rows.
    """
    weights: list[PackedWeight] = []
    biases: list[Tensor | None] = []
    for number, linear in enumerate(linears):
        rows = [(group.heads, group[SCORE if number < 2 else VALUE]) for group in heads]
        bias = None if linear.bias is None else linear.bias.detach()
        if is_padded(number, heads):
            weight, mask = (each if number < 3 else each.T for each in _dense(linear))
            weight, mask = pad_rows(weight, rows), pad_rows(mask, rows)
            if number < 3:
                bias = None if bias is None else pad_rows(bias, rows)
            else:
                weight, mask = weight.T.contiguous(), mask.T.contiguous()
            weights.append(pack_row_panels(weight, mask))
        else:
            weights.append(paired_weight(linear))
        biases.append(bias)
    return weights, biases, padded_heads(heads)


def is_padded(number: int, heads: Sequence[HeadGroup]) -> bool:
    """Return whether a matrix, by its number in a layer, is padded to heads of whole panels."""
    return number < 4 and padded_heads(heads) != list(heads)


def paired_weight(linear: Any) -> PackedWeight:
    """Return the layer's own packed weight if the engine computes it, else one that it does."""
    if isinstance(linear, SparseLinear) and kernels.supports(linear.packed, ENGINE_DTYPE):
        return linear.packed
    return pack_row_panels(*_dense(linear))


def _dense(linear: Any) -> tuple[Tensor, Tensor]:
    """Return weight and mask [out, in] of a linear layer."""
    weight = linear.weight.detach()
    if isinstance(linear, RectangleLinear):
        return linear.whole(weight), linear.whole(torch.ones_like(weight, dtype=torch.bool))
    if isinstance(linear, SparseLinear):
        return weight, linear.mask
    return weight, torch.ones_like(weight, dtype=torch.bool)
