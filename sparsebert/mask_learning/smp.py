"""Static Model Pruning (SMP): a pre-trained model learns a task only through its masks."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from fractions import Fraction
from typing import ClassVar

import torch
from torch import Tensor

from sparsebert.mask_learning import smp_recipes
from sparsebert.mask_learning.rule import (
    Goal,
    PrunableUnits,
    Scored,
    above,
    growing_penalty,
    keep_share,
    keep_top,
    logit,
    require_not_negative,
    require_positive,
    rounded,
)
from sparsebert.mask_learning.schedules import CURVES, Ramp
from sparsebert.mask_learning.share_allocation import capped_shares, proportional_shares, whole_counts
from sparsebert.pruning.sparsity_schedule import exact, require_share
from sparsebert.pruning.unit_groups import UnitGroup

# The paper trains large tasks for 12 epochs; the density falls during the first 7.
_RAMP_SHARE = Fraction(7, 12)
# Densities below and above which a threshold mask (T) has diverged.
_COLLAPSED, _WHOLE = 1e-4, 0.999
# Distance from the target density within which the released code selects the best masks.
_NEAR = Fraction(1, 100)


class Mask(StrEnum):
    """The criterion for the weights to keep.

    ``L`` keeps the highest scores of each matrix, the same share of all. ``S`` keeps the highest scores of
    each matrix, a share that depends on its scores. ``G`` keeps the highest scores of all matrices together.
    ``T`` keeps all scores above a threshold.
    """

    LOCAL = "L"
    SHARED = "S"
    GLOBAL = "G"
    THRESHOLD = "T"


class CurveName(StrEnum):
    """The curve along which the density falls."""

    CUBIC = "cubic"
    LINEAR = "linear"


class Over(StrEnum):
    """The period in which the penalty grows: the run (the code), or the fall of the density (the paper)."""

    RUN = "run"
    DENSITY = "density"


@dataclass(frozen=True)
class StaticModelPruningRule(Scored):
    """Static Model Pruning (Jiang et al. 2023, "Pruning Pre-trained Language Models Without Fine-Tuning").

    Only the scores are trained, through the mask (dL/dS = dL/dW' * W, for pruned weights too); the weights
    keep their pre-trained values. S starts at 0. The density v falls from 1 to the target along ``curve``
    over ``ramp_steps``, then stays constant. The penalty lambda(t) * mean over matrices of mean(sigmoid(S)),
    with lambda(t) = ``regularisation`` * (1 - (1 - t / T)^3), is added to the loss.

    With a start ticket the share of each matrix (of all matrices with mask G) goes along ``curve`` from the
    ticket's to the one that the mask prescribes at the target density. Mask T uses ``threshold`` from the
    first step.

    Attributes:
        mask: Criterion for the weights to keep:

            L  the top v of each matrix;
            S  the top v_l of each matrix l, where v_l = v * R_l / mean R over the matrices of its type,
               and R = mean(sigmoid(S / ``temperature``)). A v_l above 1 is capped, and its excess goes to the
               other matrices in proportion, so the density is exact;
            G  the top v of all matrices together;
            T  sigmoid(S) above a threshold that rises to ``threshold`` along the ramp. An ablation that
               tends to diverge: it raises ValueError once almost nothing or almost everything is kept.

        ramp_steps: Length of the ramp; None for 7/12 of the run.
        curve: Shape of the ramp.
        regularisation: Final weight of the penalty.
        regularisation_over: Period T of the penalty: the whole run or the ramp.
        temperature: Temperature of mask S; None for 1.
        threshold: Final threshold of mask T.
        label_words: One word per label ("terrible,great"), one for the scores of a regression, or "task" for
            the paper's words. The pre-trained language-model head predicts them at [MASK] (at the first token
            of a text without one) and stays unchanged, so the ticket alone specialises the model for a task.
            Without words, the task gets a new head, which is trained at the learning rate of the weights (the
            paper's ablation).
        template: Text around the examples, such as "{0} It was [MASK].".
        smp_compat: Compute as the released code does. Counts are rounded down and no excess is redistributed,
            so S keeps less than the target. Ramps and temperature follow the scripts for the task
            (:mod:`sparsebert.mask_learning.smp_recipes`).
    """

    trains_weights: ClassVar[bool] = False

    scores_learning_rate: float = 2e-2
    mask: Mask = Mask.SHARED
    ramp_steps: int | None = None
    curve: CurveName = CurveName.CUBIC
    regularisation: float = 400.0
    regularisation_over: Over = Over.RUN
    temperature: float | None = None
    threshold: float = 0.1
    label_words: str | None = None
    template: str | None = None
    smp_compat: bool = False

    @property
    def trains_head(self) -> bool:
        return self.label_words is None

    def __post_init__(self) -> None:
        super().__post_init__()
        require_not_negative(self, "regularisation")
        if self.temperature is not None:
            require_positive(self, "temperature")
        if self.template is not None and self.label_words is None:
            raise ValueError(f"template {self.template!r} has a blank for label words: set label_words too")
        require_share(self, "threshold")

    def check(self, goal: Goal) -> None:
        self.ramp(goal)
        if self.smp_compat and goal.start is not None:
            raise ValueError("the released code has no start ticket: omit smp_compat or the start ticket")

    def ramp(self, goal: Goal) -> Ramp:
        """Return the ramp of the density. Raise ValueError if it does not fit the run."""
        steps, source = self.ramp_steps, "ramp_steps"
        if steps is None and self.smp_compat:
            source = f"the released code's ramp for a density of {float(goal.density):g}"
            steps = smp_recipes.ramp_steps(goal, self.mask is Mask.SHARED)
        elif steps is None:
            steps, source = max(1, round(_RAMP_SHARE * goal.steps)), ""
        if not 1 <= steps <= goal.steps:
            raise ValueError(f"{source} must be from 1 to the {goal.steps} steps of the run, got {steps}")
        return Ramp(0, steps, CURVES[self.curve])

    def is_near(self, goal: Goal, step: int) -> bool:
        """Return whether the density of a step is within 0.01 of the target.

        The released code selects its best masks among such steps. For mask T it selects none; here all steps
        after the ramp count as near.
        """
        ramp = self.ramp(goal)
        if self.mask is Mask.THRESHOLD:
            return step >= ramp.end
        firsts = [Fraction(1)] if goal.start is None else goal.start.values()
        return all(abs(ramp.at(step, first, goal.density) - goal.density) < _NEAR for first in firsts)

    @property
    def score_threshold(self) -> float | None:
        return logit(self.threshold) if self.mask is Mask.THRESHOLD else None

    def masks(
        self, scores: Mapping[str, Tensor], units: PrunableUnits, goal: Goal, step: int
    ) -> dict[str, Tensor]:
        ramp = self.ramp(goal)
        if self.mask is Mask.THRESHOLD:
            last = exact("threshold", self.threshold)
            threshold = float(ramp.at(step, Fraction(0) if goal.start is None else last, last))
            masks = {
                group.name: rounded(scores[group.name], group, above(scores[group.name], threshold))
                for group in units.groups
            }
            if step >= ramp.end:
                _require_alive(masks, step)
            return masks
        if self.mask is Mask.SHARED:
            return self._shared(scores, units, goal, step)
        if self.smp_compat and self.mask is Mask.LOCAL:
            density = ramp.at(step, Fraction(1), goal.density)
            return _top_rounded_down(scores, units.groups, [float(density)] * len(units.groups))
        return keep_share(scores, units, goal, ramp, step)

    def penalty(self, scores: Mapping[str, Tensor], goal: Goal, step: int) -> Tensor | None:
        end = goal.steps if self.regularisation_over is Over.RUN else self.ramp(goal).end
        if self.smp_compat and self.regularisation_over is Over.RUN:
            end = smp_recipes.penalty_steps(goal)
        return growing_penalty(scores, self.regularisation, end, step)

    def _shared(
        self, scores: Mapping[str, Tensor], units: PrunableUnits, goal: Goal, step: int
    ) -> dict[str, Tensor]:
        """Return the masks of criterion S."""
        ramp, temperature = self.ramp(goal), self.temperature
        if temperature is None:
            temperature = smp_recipes.temperature(goal) if self.smp_compat else 1.0
        masks: dict[str, Tensor] = {}
        for groups in units.competition_groups("type"):
            rates = [
                float(torch.sigmoid(scores[group.name].detach() / temperature).mean(dtype=torch.float64))
                for group in groups
            ]
            density = ramp.at(step, goal.first_density(groups), goal.density)
            if self.smp_compat:
                shares = proportional_shares(rates, [group.weights for group in groups], float(density))
                masks |= _top_rounded_down(scores, groups, shares)
                continue
            size, counts = _common_units(groups)
            if goal.start is None:
                shares = capped_shares(rates, counts, float(density))
            else:
                progress = float(ramp.at(step, Fraction(0), Fraction(1)))
                firsts = [float(goal.start[group.name]) for group in groups]
                lasts = capped_shares(rates, counts, float(goal.density))
                shares = [
                    first + (last - first) * progress for first, last in zip(firsts, lasts, strict=True)
                ]
            kept = whole_counts(shares, counts, round(density * sum(counts)))
            for group, count in zip(groups, kept, strict=True):
                masks |= keep_top(scores, [group], Fraction(count * size))
        return masks


def _common_units(groups: list[UnitGroup]) -> tuple[int, list[int]]:
    """Return the size of the units that a budget counts, and their number in each group.

    If all units have one size, units are counted instead of weights: the budget then splits none of them.
    """
    sizes = {group.sizes if isinstance(group.sizes, int) else 1 for group in groups}
    size = sizes.pop() if len(sizes) == 1 else 1
    return size, [group.weights // size for group in groups]


def _top_rounded_down(
    scores: Mapping[str, Tensor], groups: tuple[UnitGroup, ...] | list[UnitGroup], shares: list[float]
) -> dict[str, Tensor]:
    """Keep the int(share * n) highest of the n units of each group, and all units for a share above 1."""
    masks: dict[str, Tensor] = {}
    for group, share in zip(groups, shares, strict=True):
        size = math.prod(group.grid)
        masks |= keep_top(scores, [group], Fraction(min(int(share * size), size)), size=1)
    return masks


def _require_alive(masks: Mapping[str, Tensor], step: int) -> None:
    """Raise ValueError if a threshold keeps almost nothing or almost everything."""
    kept = sum(int(mask.count_nonzero()) for mask in masks.values())
    density = kept / sum(mask.numel() for mask in masks.values())
    if not _COLLAPSED <= density <= _WHOLE:
        raise ValueError(
            f"mask T diverged: at step {step} it keeps {density:.4%} of the weights; "
            "try another regularisation or threshold, or mask S"
        )
