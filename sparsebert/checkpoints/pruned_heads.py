"""Matrices without the heads that a config.json calls pruned.

``prune_heads`` of transformers before version 5, and nn_pruning, delete the features of pruned heads from the
matrices and list the heads in ``pruned_heads``. In the original shapes these features are zero.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

# Dimension of a weight that enumerates the features of all heads.
HEAD_DIM = {"query": 0, "key": 0, "value": 0, "attention_output": 1}


def pruned_heads_of(config: Mapping[str, Any]) -> dict[int, set[int]]:
    """Return the pruned heads by layer number, from the contents of config.json.

    Raises:
        ValueError: ``pruned_heads`` does not list head numbers by layer.
    """
    table = config.get("pruned_heads") or {}
    try:
        return {int(layer): {_whole(head) for head in heads} for layer, heads in table.items() if heads}
    except (AttributeError, TypeError, ValueError):
        raise ValueError("config.json must list pruned_heads by layer, as numbers of heads") from None


def kept_features(pruned: set[int], heads: int, width: int) -> Tensor:
    """Return the features of the kept heads, int64, in the original numbering.

    Args:
        pruned: Numbers of the pruned heads of a layer.
        heads: Heads of the layer with the pruned ones.
        width: Features of all these heads.

    Raises:
        ValueError: The layer has no such head, or the heads do not divide the features.
    """
    if not 1 <= heads <= width or width % heads:
        raise ValueError(f"cannot have {heads} heads in {width} features")
    if not all(0 <= head < heads for head in pruned):
        raise ValueError(f"has {heads} heads, got pruned_heads {sorted(pruned)}")
    kept = torch.ones(heads, dtype=torch.bool)
    kept[sorted(pruned)] = False
    return kept.repeat_interleave(width // heads).nonzero().flatten()


def with_pruned_heads(tensor: Tensor, kind: str, kept: Tensor, width: int) -> Tensor:
    """Return a weight, mask or bias in its original shape, with zeros in the features of the pruned heads.

    Args:
        tensor: Weight or mask [out, in] or bias [out]; returned as it is if it has all features.
        kind: Kind of the matrix, as :func:`sparsebert.bert.encoder_matrix` returns it.
        kept: See :func:`kept_features`.
        width: Features of all heads.

    Raises:
        ValueError: The tensor has neither all features nor those of the kept heads.
    """
    dim = HEAD_DIM.get(kind)
    if dim is None or dim >= tensor.dim() or tensor.shape[dim] == width:
        return tensor
    if tensor.shape[dim] != len(kept):
        raise ValueError(f"has {tensor.shape[dim]} head features, but pruned_heads keeps {len(kept)}")
    shape = list(tensor.shape)
    shape[dim] = width
    return tensor.new_zeros(shape).index_copy_(dim, kept, tensor)


def _whole(head: object) -> int:
    if type(head) is not int:
        raise TypeError
    return head
