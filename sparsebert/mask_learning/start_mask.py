"""The start of mask learning at the mask of a ticket."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from fractions import Fraction

import torch
from torch import Tensor

from sparsebert.mask_learning.rule import Goal, PrunableUnits, Rule, Scored
from sparsebert.pruning.unit_groups import UnitGroup
from sparsebert.tickets.ticket import Ticket


def kept_units(start: Ticket, groups: Sequence[UnitGroup]) -> dict[str, Tensor]:
    """Return the units that a start ticket keeps: group -> bool in the shape of its grid.

    Raises ValueError, naming a matrix, if the ticket keeps parts of units.
    """
    return {group.name: group.whole({key: start.masks[key] for key in group.parts}) for group in groups}


def started(goal: Goal, kept: Mapping[str, Tensor], groups: Sequence[UnitGroup]) -> Goal:
    """Return the goal of a run that starts with these units (bool by group)."""
    shares = {}
    for group in groups:
        mask, sizes = kept[group.name], group.sizes
        weights = int(mask.sum()) * sizes if isinstance(sizes, int) else int(sizes[mask].sum())
        shares[group.name] = Fraction(weights, group.weights)
    return replace(goal, start=shares)


def below_kept(scores: Tensor, kept: Tensor) -> Tensor:
    """Rank units outside of ``kept`` (bool) below all others, by magnitudes (at least 0) as before."""
    return torch.where(kept, scores, -1 / (1 + scores))


def require_start_mask(rule: Rule, units: PrunableUnits, goal: Goal, kept: Mapping[str, Tensor]) -> None:
    """Raise ValueError, naming a matrix, unless the rule's masks of step 0 keep exactly these units.

    Args:
        rule: The rule.
        units: The units that it masks.
        goal: Goal of a run that starts with the units.
        kept: Group -> bool over its units.
    """
    if isinstance(rule, Scored):
        scores = {name: rule.start_scores(mask, goal) for name, mask in kept.items()}
    else:
        scores = {name: below_kept(torch.ones(mask.shape), mask) for name, mask in kept.items()}
    for name, mask in rule.masks(scores, units, goal, 0).items():
        if not torch.equal(mask, kept[name]):
            raise ValueError(
                f"the method cannot start with the start ticket's mask of {name}: it would keep "
                f"{int(mask.sum())} units, the ticket keeps {int(kept[name].sum())}; use a ticket of the "
                "same granularity"
            )
