"""Rows with too few weights pruned as well: lossy, and a smaller ticket rather than a rule of its own."""

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
    found = dict(masks)
    for keys in (*neurons, *heads):
        for key in keys:
            if key in found:
                found[key] = _without(found[key], least, torch.ones(found[key].shape[1], dtype=torch.bool))
    for source, reader in [keys[-2:] for keys in (*neurons, *heads)]:
        if reader not in found or source not in found:
            continue
        while True:
            live, _ = live_features(found[source], found[reader])
            thinner = _without(found[reader], least, live)
            if torch.equal(thinner, found[reader]):
                break
            found[reader] = thinner
    return found


def _without(mask: Tensor, least: int, live: Tensor) -> Tensor:
    return mask & ((mask & live).sum(1, keepdim=True) >= least)
