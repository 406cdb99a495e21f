"""Rounding of panels: each panel keeps a number of columns that fills the tiles of the kernels."""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction
from typing import NamedTuple

import torch
from torch import Tensor

from sparsebert.pruning.top_k import select_top
from sparsebert.pruning.unit_groups import UnitGroup


class _Panels(NamedTuple):
    """The panels of a matrix, each with its units in order of rank.

    Attributes:
        order: Units of each panel by rank, int64 [panels, units].
        sizes: Weights of each unit by rank, int64 [panels, units].
        scores: Scores by rank, float32 [panels, units]; NaN for dead units, which rank last.
        low: Number of units of each panel after rounding down, int64 [panels].
        high: Number of units of each panel after rounding up, int64 [panels].
    """

    order: Tensor
    sizes: Tensor
    scores: Tensor
    low: Tensor
    high: Tensor


def round_panels(
    groups: Sequence[UnitGroup], scores: Sequence[Tensor], kept: Sequence[Tensor]
) -> list[Tensor]:
    """Round the number of units that each panel keeps to a multiple of the quantum.

    A panel is a row of units of h x g weights: h rows of the matrix, fewer in the last panel. Its quantum is
    ``round_to`` columns, m = round_to / g units. Where g does not divide the matrix, the narrower unit at its
    right edge counts as one unit, as in the packed format. After rounding, a panel keeps 0, m, 2m, ... units
    or all of them; "all" is the only number that may not be a multiple of m.

    The units of a panel are ranked by score, highest first, and equal scores by column. A panel that keeps c
    units keeps the first c of this ranking, before and after rounding. Let its remainder be c mod m. Panels
    without a remainder, and panels that keep all units, do not change. Each other panel is rounded down to
    the multiple of m below c, and its next m units (all its last units, if there are fewer) become a
    candidate. The score of a candidate is the mean score of its units, summed in float64 in order of rank and
    rounded to float32. Candidates are ranked by score, highest first, and equal scores by panel. The first
    candidates of this ranking are kept, as many as bring the number of kept weights of the matrix nearest to
    the number before rounding; of two equally near numbers of candidates the even one.

    Matrices are rounded in order, and the difference that one leaves, at most half a quantum of a panel, is
    added to the number that the next is to keep. So rounding changes the number of kept weights of a matrix
    by at most one quantum of a panel (round_to times h weights), and that of all matrices by at most half of
    one.

    Args:
        groups: The groups whose units compete with each other.
        scores: For each group, float32 [panels, units], NaN for dead units (see
            :func:`sparsebert.pruning.top_k.ranked`).
        kept: For each group, the bool mask over units that the selection by score keeps, True = keep.

    Returns:
        The masks after rounding; the masks in ``kept`` for groups that are not panels.

    Raises:
        ValueError: Units that an earlier ticket has pruned leave too few candidates.
    """
    rounded = []
    owed = Fraction(0)  # weights that the matrices so far have kept too few
    for group, ranking, mask in zip(groups, scores, kept, strict=True):
        if group.quantum == 1:
            rounded.append(mask)
            continue
        panels = _panels(group, ranking, mask)
        if panels is None:
            rounded.append(mask)
            continue
        target = _weights(panels, mask.sum(1))
        quantum = Fraction(int(torch.as_tensor(group.sizes).max()) * group.quantum)
        taken = _candidates(panels, group.quantum, target + owed)
        units = torch.where(taken, panels.high, panels.low)
        change = _weights(panels, units) - target
        if abs(change) > quantum:
            raise ValueError(
                f"the ticket's panels of {group.name} do not keep multiples of {group.quantum} units: use a "
                "ticket of the same panels, or a higher sparsity"
            )
        owed = max(-quantum / 2, min(quantum / 2, owed - change))
        places = torch.arange(mask.shape[1], device=mask.device) < units[:, None]
        rounded.append(torch.zeros_like(mask).scatter_(1, panels.order, places))
    return rounded


def _panels(group: UnitGroup, scores: Tensor, mask: Tensor) -> _Panels | None:
    """Return the panels of a matrix in order of rank; None if no panel has a remainder."""
    count = mask.sum(1)
    low = count // group.quantum * group.quantum
    high = (low + group.quantum).clamp(max=mask.shape[1])
    whole = (count == low) | (count == mask.shape[1])
    if whole.all():
        return None
    low = torch.where(whole, count, low)
    high = torch.where(whole, count, high)
    dead = scores.isnan()
    order = scores.masked_fill(dead, -math.inf).argsort(stable=True, dim=1, descending=True)
    if dead.any():  # A live score may be -inf too.
        order = order.gather(1, dead.gather(1, order).byte().argsort(stable=True, dim=1))
    sizes = torch.as_tensor(group.sizes, device=mask.device).expand(mask.shape)
    return _Panels(order, sizes.gather(1, order), scores.gather(1, order), low, high)


def _weights(panels: _Panels, units: Tensor) -> int:
    """Return the number of weights of the first ``units`` (int64 [panels]) units of each panel."""
    places = torch.arange(panels.sizes.shape[1], device=units.device) < units[:, None]
    return int(panels.sizes[places].sum())


def _candidates(panels: _Panels, quantum: int, budget: Fraction) -> Tensor:
    """Return the panels to round up, bool [panels]."""
    taken = torch.zeros_like(panels.low, dtype=torch.bool)
    total = torch.zeros(panels.low.shape, dtype=torch.float64, device=taken.device)
    sizes = torch.zeros_like(panels.low)
    for offset in range(quantum):
        place = panels.low + offset
        inside = place < panels.high
        place = place.clamp(max=panels.sizes.shape[1] - 1)[:, None]
        total += torch.where(inside, panels.scores.gather(1, place)[:, 0].double(), 0.0)
        sizes += torch.where(inside, panels.sizes.gather(1, place)[:, 0], 0)
    scores = (total / (panels.high - panels.low)).float()
    live = ((panels.high > panels.low) & ~scores.isnan()).nonzero().flatten()
    room = budget - _weights(panels, panels.low)
    if room >= int(sizes[live].sum()):
        taken[live] = True
    elif room > 0:
        (mask,) = select_top([scores[live]], [sizes[live]], room)
        taken[live] = mask
    return taken
