"""Static Model Pruning: a pre-trained model learns a task by its masks alone."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from fractions import Fraction
from typing import ClassVar

import torch
from torch import Tensor

from sparsebert.mask_learning import smp_recipes
from sparsebert.mask_learning.rule import (
    Candidates,
    Goal,
    Scored,
    above,
    growing_penalty,
    keep_share,
    keep_top,
    require_not_negative,
    require_positive,
)
from sparsebert.mask_learning.schedules import CURVES, Ramp
from sparsebert.pruning.sparsity_schedule import exact, require_share

# Of a run's steps: 7 of the 12 epochs that the paper trains large tasks for.
_SHARE_OF_RAMP = Fraction(7, 12)
_COLLAPSED, _WHOLE = 1e-4, 0.999
_NEAR = Fraction(1, 100)


class Mask(StrEnum):
    """Which weights stay: the highest scores of each matrix (L), of each matrix by its share of what its type
    may keep (S), of all matrices (G), or all scores above a threshold (T)."""

    LOCAL = "L"
    SHARED = "S"
    GLOBAL = "G"
    THRESHOLD = "T"


class CurveName(StrEnum):
    CUBIC = "cubic"
    LINEAR = "linear"


class Over(StrEnum):
    """How long the penalty grows: as long as the run (the code), or while the density falls (the paper)."""

    RUN = "run"
    DENSITY = "density"


@dataclass(frozen=True)
class StaticModelPruningRule(Scored):
    """Static Model Pruning, SMP (Jiang et al. 2023, "Pruning Pre-trained Language Models Without
    Fine-Tuning"): only the scores are trained, through the mask (dL/dS = dL/dW' * W, dead weights too), and
    the weights stay what they were. S begins at 0.

    ``label_words``: a word for each label ("terrible,great"), or "task" for those of the paper. They are read
    from the pre-trained language model's head at [MASK], or where there is none at the first token, and that
    head stays what it was too: all that a task needs is its ticket. ``template``: the text that examples are
    put into, "{0} It was [MASK].". Without words the task gets a head of its own, which is trained at the
    weights' learning rate: the paper's ablation from scratch.

    The density falls from 1 to what is asked for over ``ramp_steps`` (7/12 of the run without them) along
    ``curve``, then stays. ``mask`` is one of

    L  top v of each matrix;
    S  top v_l of each matrix l, where v_l = v * R_l / mean R over the L matrices of its type, and R is the
       mean of sigma(S / ``temperature``). No more than all of a matrix can stay: what a v_l above 1 would
       keep besides goes to the other matrices in proportion, so the density is exact;
    G  top v of all matrices together;
    T  sigma(S) above a threshold that rises to ``threshold`` while the density falls elsewhere. An ablation
       that tends to diverge: it stops with a ValueError once next to nothing or next to everything stays.

    The loss gets lambda(t) * mean over matrices of the mean of sigma(S), with lambda(t) =
    ``regularisation`` * (1 - (1 - t / T)^3) and T as ``regularisation_over`` says.

    ``smp_compat``: as the released code computes. Counts are rounded to below, nothing is redistributed (so S
    keeps less than it says), and ramps and temperature are what its scripts set for the task
    (:mod:`sparsebert.mask_learning.smp_recipes`): the temperature is 4 from a density of 0.7 on, and the density falls
    over 3500 steps from a density of 0.8 on, 5250 from 0.7 on, else all steps but the last 30000.
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
            raise ValueError(f"template {self.template!r} needs label words to stand in its blank")
        require_share(self, "threshold")

    def check(self, goal: Goal) -> None:
        self.ramp(goal)

    def ramp(self, goal: Goal) -> Ramp:
        """Over the first N steps. Raises ValueError unless N is from 1 to all of them."""
        steps, source = self.ramp_steps, "ramp_steps"
        if steps is None and self.smp_compat:
            source = f"the released code's ramp for a density of {float(goal.density):g}"
            steps = smp_recipes.ramp_steps(goal, self.mask is Mask.SHARED)
        elif steps is None:
            steps, source = max(1, round(_SHARE_OF_RAMP * goal.steps)), ""
        if not 1 <= steps <= goal.steps:
            raise ValueError(f"{source} is {steps} steps: it does not fit a run of {goal.steps}")
        return Ramp(0, steps, CURVES[self.curve])

    def is_near(self, goal: Goal, step: int) -> bool:
        """Whether the density of this step is within 0.01 of the goal's: the masks that the released code
        chooses the best among. With a threshold it chooses none; here they count once that rises no more."""
        ramp = self.ramp(goal)
        if self.mask is Mask.THRESHOLD:
            return step >= ramp.end
        return ramp.at(step, Fraction(1), goal.density) - goal.density < _NEAR

    def masks(
        self, scores: Mapping[str, Tensor], candidates: Candidates, goal: Goal, step: int
    ) -> dict[str, Tensor]:
        ramp = self.ramp(goal)
        if self.mask is Mask.THRESHOLD:
            threshold = float(ramp.at(step, Fraction(0), exact("threshold", self.threshold)))
            found = {group.name: above(scores[group.name], threshold) for group in candidates.groups}
            if step >= ramp.end:
                _require_alive(found, step)
            return found
        density = ramp.at(step, Fraction(1), goal.density)
        if self.mask is Mask.SHARED:
            return self._shared(scores, candidates, density, goal)
        if self.smp_compat and self.mask is Mask.LOCAL:
            shares = dict.fromkeys((group.name for group in candidates.groups), float(density))
            return _top_rounded_down(scores, shares, candidates)
        return keep_share(scores, candidates, density)

    def penalty(self, scores: Mapping[str, Tensor], goal: Goal, step: int) -> Tensor | None:
        end = goal.steps if self.regularisation_over is Over.RUN else self.ramp(goal).end
        if self.smp_compat and self.regularisation_over is Over.RUN:
            end = smp_recipes.penalty_steps(goal)
        return growing_penalty(scores, self.regularisation, end, step)

    def _shared(
        self, scores: Mapping[str, Tensor], candidates: Candidates, density: Fraction, goal: Goal
    ) -> dict[str, Tensor]:
        temperature = self.temperature
        if temperature is None:
            temperature = smp_recipes.temperature(goal) if self.smp_compat else 1.0
        masks: dict[str, Tensor] = {}
        for of_type in candidates.competition_groups("type"):
            rates = [
                float(torch.sigmoid(scores[group.name].detach() / temperature).mean(dtype=torch.float64))
                for group in of_type
            ]
            weights = [group.weights for group in of_type]
            if self.smp_compat:
                shares = shares_of(rates, weights, float(density))
                named = {group.name: share for group, share in zip(of_type, shares, strict=True)}
                masks |= _top_rounded_down(scores, named, candidates)
                continue
            # Where all units are of one size they are counted, so that none is cut at the edge of a budget.
            sizes = {group.sizes if isinstance(group.sizes, int) else 1 for group in of_type}
            size = sizes.pop() if len(sizes) == 1 else 1
            units = [group.weights // size for group in of_type]
            filled = water_filled(rates, units, float(density))
            counts = whole_numbers(filled, units, round(density * sum(units)))
            for group, count in zip(of_type, counts, strict=True):
                masks |= keep_top(scores, [group], Fraction(count * size))
        return masks


def shares_of(rates: Sequence[float], sizes: Sequence[int], density: float) -> list[float]:
    """Shares in proportion to the rates that keep this density of all together, some perhaps above 1.

    Rates that are all 0 count as equal, and NaN is refused with a ValueError.
    """
    if any(math.isnan(rate) for rate in rates):
        raise ValueError("a score is NaN")
    total = sum(rate * size for rate, size in zip(rates, sizes, strict=True))
    if total == 0:
        return [density] * len(rates)
    return [rate * density * sum(sizes) / total for rate in rates]


def water_filled(rates: Sequence[float], sizes: Sequence[int], density: float) -> list[float]:
    """As :func:`shares_of`, but none above 1: what is too much for one raises the others' in proportion."""
    shares = [1.0] * len(rates)
    open_ = list(range(len(rates)))
    left = density * sum(sizes)
    while open_:
        room = sum(sizes[i] for i in open_)
        found = shares_of([rates[i] for i in open_], [sizes[i] for i in open_], left / room)
        full = [i for i, share in zip(open_, found, strict=True) if share >= 1]
        if not full:
            for i, share in zip(open_, found, strict=True):
                shares[i] = share
            break
        left -= sum(sizes[i] for i in full)
        open_ = [i for i in open_ if i not in full]
    return shares


def whole_numbers(shares: Sequence[float], sizes: Sequence[int], total: int) -> list[int]:
    """How many of each to keep: share times size, rounded so that they sum to ``total`` (largest remainders
    first, then in order)."""
    wanted = [share * size for share, size in zip(shares, sizes, strict=True)]
    counts = [min(math.floor(each), size) for each, size in zip(wanted, sizes, strict=True)]
    order = sorted(range(len(counts)), key=lambda i: counts[i] - wanted[i])
    left = total - sum(counts)
    while left > 0:
        for i in order:
            if left and counts[i] < sizes[i]:
                counts[i] += 1
                left -= 1
    return counts


def _top_rounded_down(
    scores: Mapping[str, Tensor], shares: Mapping[str, float], candidates: Candidates
) -> dict[str, Tensor]:
    """The int(share * n) highest of the n units of each matrix, and all of it for a share above 1."""
    masks: dict[str, Tensor] = {}
    for group in candidates.groups:
        if group.name in shares:
            units = math.prod(group.grid)
            count = min(int(shares[group.name] * units), units)
            masks |= keep_top(scores, [group], Fraction(count), size=1)
    return masks


def _require_alive(masks: Mapping[str, Tensor], step: int) -> None:
    kept = sum(int(mask.count_nonzero()) for mask in masks.values())
    share = kept / sum(mask.numel() for mask in masks.values())
    if not _COLLAPSED <= share <= _WHOLE:
        raise ValueError(
            f"mask T diverged: at step {step} it keeps {share:.4%} of the weights; "
            "try another regularisation or threshold, or mask S"
        )
