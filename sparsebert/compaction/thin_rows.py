"""Prune rows with too few weights: a lossy step, expressed as sparser masks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from sparsebert.compaction.masked_matrix import live_features


def without_thin_rows(
    masks: Mapping[str, Tensor],
    least: int,
    neurons: Sequence[Sequence[str]],
    heads: Sequence[Sequence[str]],
) -> dict[str, Tensor]:
    """Prune every row that has fewer than ``least`` weights in live columns.

    A column of a down-projection or an output projection is live if its neuron or value dimension must be
    computed. Pruning one row can therefore make another row thin; pruning repeats until no thin row remains.

    Args:
        masks: Key -> mask [out, in]; matrices without one keep all weights.
        least: The fewest weights of a row to keep.
        neurons: As in ``sparsebert.bert.Structure``.
        heads: As in ``sparsebert.bert.Structure``.

    Returns:
        The masks, sparser where rows were pruned.
    """
    thinned = dict(masks)
    for keys in (*neurons, *heads):
        for key in keys:
            if key in thinned:
                thinned[key] = _prune_thin(
                    thinned[key], least, torch.ones(thinned[key].shape[1], dtype=torch.bool)
                )
    for source, reader in [keys[-2:] for keys in (*neurons, *heads)]:
        if reader not in thinned or source not in thinned:
            continue
        while True:
            live, _ = live_features(thinned[source], thinned[reader])
            thinner = _prune_thin(thinned[reader], least, live)
            if torch.equal(thinner, thinned[reader]):
                break
            thinned[reader] = thinner
    return thinned


def _prune_thin(mask: Tensor, least: int, live: Tensor) -> Tensor:
    """Prune the rows of a mask with fewer than ``least`` weights in live columns (bool [in])."""
    return mask & ((mask & live).sum(1, keepdim=True) >= least)
