"""Prune rows with too few weights as well: lossy, expressed as a sparser ticket."""

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
    """Masks [out, in] that prune every row with fewer than ``least`` weights that still count, too.

    A weight counts while its column does: the columns of neurons and of dimensions of value that need not be
    computed do not. So one row can empty another, and rows go until none is thin. ``neurons`` and ``heads``
    are those of a `sparsebert.bert.Structure`; keys without a mask are kept whole.
    """
    thinned = dict(masks)
    for keys in (*neurons, *heads):
        for key in keys:
            if key in thinned:
                thinned[key] = _without(
                    thinned[key], least, torch.ones(thinned[key].shape[1], dtype=torch.bool)
                )
    for source, reader in [keys[-2:] for keys in (*neurons, *heads)]:
        if reader not in thinned or source not in thinned:
            continue
        while True:
            live, _ = live_features(thinned[source], thinned[reader])
            thinner = _without(thinned[reader], least, live)
            if torch.equal(thinner, thinned[reader]):
                break
            thinned[reader] = thinner
    return thinned


def _without(mask: Tensor, least: int, live: Tensor) -> Tensor:
    return mask & ((mask & live).sum(1, keepdim=True) >= least)
