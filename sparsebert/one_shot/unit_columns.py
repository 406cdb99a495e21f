"""Heads and neurons as columns of the matrix that reads them and rows of those that compute them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from sparsebert.bert import weight_of
from sparsebert.pruning.unit_groups import UnitGroup


def reader_of(group: UnitGroup) -> UnitGroup:
    """Return the columns of the matrix that reads the units; a group of one matrix is returned as it is."""
    key = list(group.parts)[-1]
    return UnitGroup({key: group.parts[key]}, {key: group.shapes[key]})


@torch.no_grad()
def prune_sources_(
    model: nn.Module, groups: Sequence[UnitGroup], masks: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Set the rows to 0 that compute units without readers: nothing depends on them.

    Args:
        model: The model.
        groups: The units.
        masks: Key -> bool [out, in] of the matrix that reads the units of each group, whole units only.

    Returns:
        The masks of all matrices of the groups.
    """
    every = dict(masks)
    for group in groups:
        *sources, reader = group.parts
        if not sources:
            continue
        kept = masks[reader][0].unflatten(0, (group.grid[0], -1)).any(1)
        expanded = group.expand(kept.view(group.grid))
        for key in sources:
            every[key] = expanded[key]
            weight = weight_of(model, key)
            weight.masked_fill_(~every[key].to(weight.device), 0)
    return every
