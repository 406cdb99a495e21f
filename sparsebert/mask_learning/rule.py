"""Mask-learning rules: frozen dataclasses that turn scores and an optimizer step into masks."""

from __future__ import annotations

import abc
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, ClassVar

import torch
from torch import Tensor

from sparsebert.mask_learning.schedules import Ramp
from sparsebert.pruning.panel_rounding import round_panels
from sparsebert.pruning.sparsity_schedule import exact
from sparsebert.pruning.top_k import Size, ranked, select_top
from sparsebert.pruning.unit_groups import UnitGroup, competition_groups


@dataclass(frozen=True)
class Goal:
    """Length and target density of a run.

    Attributes:
        steps: Optimizer steps of the run.
        warmup: Steps in which the learning rate warms up.
        density: Share of the weights to keep at the end.
        task: Name of the task, for rules whose published settings depend on it.
        taught: Whether the run distils a teacher, for the same rules.
        start: Group -> share of its weights that the run's start ticket keeps; None without a start ticket.
        constant_phases: Whether a ramped density is held without a learning-rate warm-up, too.
    """

    steps: int
    warmup: int
    density: Fraction
    task: str = ""
    taught: bool = False
    start: Mapping[str, Fraction] | None = None
    constant_phases: bool = True

    @property
    def density_warmup(self) -> int:
        """Steps that the constant phases of the density are multiples of.

        Those of the learning-rate warm-up, as in the published runs; without one a tenth of the run, which
        is about its share in them (Sanh et al. 2020: 5,400 of 55,000 steps on SQuAD).
        """
        return self.warmup or (round(self.steps / 10) if self.constant_phases else 0)

    def first_density(self, competing: Sequence[UnitGroup]) -> Fraction:
        """Return the share of weights to keep in competing groups at the start: 1 without a start ticket."""
        if self.start is None:
            return Fraction(1)
        kept = sum((self.start[group.name] * group.weights for group in competing), Fraction(0))
        return kept / sum(group.weights for group in competing)


@dataclass(frozen=True)
class PrunableUnits:
    """The units that a rule masks.

    Attributes:
        groups: Units by group; each group shares one tensor of scores.
        types: Matrix key -> its type (query, key, value, ...), as in a Structure.
        scope: The units that compete with each other, as in :func:`sparsebert.prune`.
    """

    groups: tuple[UnitGroup, ...]
    types: Mapping[str, str]
    scope: str

    def competition_groups(self, scope: str | None = None) -> list[list[UnitGroup]]:
        """Return the groups whose units compete with each other, in ``scope`` or in the scope of the run."""
        return competition_groups(self.groups, scope or self.scope, self.types)


@dataclass(frozen=True)
class Rule(abc.ABC):
    """Base class of the rules.

    A rule derives the masks of units from their scores. The scores are the magnitudes of the weights, unless
    the rule is :class:`Scored`. Scores and masks are keyed by the names of the groups.

    Attributes:
        trains_weights: Whether the weights of the base model are trained; its embeddings are always frozen.
    """

    trains_weights: ClassVar[bool] = True

    @property
    def trains_head(self) -> bool:
        """Whether the task head is trained."""
        return True

    def __post_init__(self) -> None:  # noqa: B027  (the end of the chain of option checks)
        """Raise ValueError for invalid options."""

    def check(self, goal: Goal) -> None:  # noqa: B027  (a hook: most rules fit every run)
        """Raise ValueError if the rule's schedule does not fit the run."""

    @abc.abstractmethod
    def masks(
        self, scores: Mapping[str, Tensor], units: PrunableUnits, goal: Goal, step: int
    ) -> dict[str, Tensor]:
        """Return the masks of an optimizer step.

        Args:
            scores: Group -> floating-point scores in the shape of the group's grid.
            units: The units to mask.
            goal: Length and target density of the run.
            step: Optimizer step, counted from 0; ``goal.steps`` for the final masks.

        Returns:
            Group -> bool mask over its units, True = keep.

        Raises:
            ValueError: A score is NaN.
        """

    def penalty(self, scores: Mapping[str, Tensor], goal: Goal, step: int) -> Tensor | None:
        """Return a differentiable scalar to add to the loss of a step, or None."""
        return None


@dataclass(frozen=True)
class Scored(Rule):
    """Base class of the rules that train scores.

    Attributes:
        first_score: Initial value of every score.
        scores_learning_rate: Learning rate of the scores. It follows the schedule of the weights' learning
            rate; scores have no weight decay.
    """

    first_score: ClassVar[float] = 0.0

    scores_learning_rate: float = 1e-2

    def __post_init__(self) -> None:
        super().__post_init__()
        require_positive(self, "scores_learning_rate")

    @property
    def score_threshold(self) -> float | None:
        """The score above which units are kept at the end of a run; None if units compete."""
        return None

    def start_scores(self, kept: Tensor, goal: Goal) -> Tensor:
        """Return initial scores by which the masks of step 0 are those of a start ticket.

        Kept units start at ``first_score``, and pruned units below them by the distance that Adam's steps,
        each about one learning rate long, cover at random in the run: ``scores_learning_rate`` * sqrt(steps).
        A unit comes back if its score rises more consistently than that. With a threshold, both keep this
        distance from it.

        Args:
            kept: Units that the start ticket keeps, bool in the shape of a group's grid.
            goal: Length and target density of the run.

        Returns:
            float32 scores in the shape of ``kept``.
        """
        distance = self.scores_learning_rate * math.sqrt(goal.steps)
        if self.score_threshold is None:
            return torch.where(kept, self.first_score, self.first_score - distance)
        lowest = self.score_threshold + distance
        return torch.where(kept, max(self.first_score, lowest), self.score_threshold - distance)


@dataclass(frozen=True)
class Gated(Scored):
    """Base class of the rules that multiply weights by gates, real numbers in [0, 1]."""

    @abc.abstractmethod
    def gates(self, scores: Tensor, uniform: Tensor | None) -> Tensor:
        """Return the gates of units, in the shape of ``scores`` and differentiable in them.

        Args:
            scores: Scores of the units.
            uniform: Random numbers in [0, 1), in the shape of ``scores``, from which training samples its
                gates; None for the deterministic gates of the trained model.
        """


def keep_top(
    scores: Mapping[str, Tensor], competing: Sequence[UnitGroup], budget: Fraction, size: Size | None = None
) -> dict[str, Tensor]:
    """Return masks that keep the highest scores of competing groups, within a budget; panels are rounded.

    Args:
        scores: Group -> scores.
        competing: The groups that share the budget.
        budget: Weights to keep; with ``size=1``, units to keep.
        size: Size of each unit in the budget; None for its number of weights.
    """
    order = [ranked(scores[group.name].detach().float()) for group in competing]
    sizes = [group.sizes if size is None else size for group in competing]
    kept = round_panels(competing, order, select_top(order, sizes, budget))
    return {group.name: mask for group, mask in zip(competing, kept, strict=True)}


def keep_share(
    scores: Mapping[str, Tensor], units: PrunableUnits, goal: Goal, ramp: Ramp, step: int
) -> dict[str, Tensor]:
    """Return masks that keep the highest scores of each scope.

    The share of weights to keep goes along the ramp from 1, or from the start ticket's share of the scope, to
    the target density.
    """
    masks: dict[str, Tensor] = {}
    for competing in units.competition_groups():
        density = ramp.at(step, goal.first_density(competing), goal.density)
        masks |= keep_top(scores, competing, density * sum(group.weights for group in competing))
    return masks


def logit(probability: float) -> float:
    """Return the score whose sigmoid is this probability, between 0 and 1."""
    return math.log(probability / (1 - probability))


def above(scores: Tensor, threshold: float) -> Tensor:
    """Return the bool mask sigmoid(scores) > threshold. Raise ValueError if a score is NaN."""
    probabilities = torch.sigmoid(scores.detach())
    if probabilities.isnan().any():
        raise ValueError("a score is NaN: training diverged; lower the learning rates")
    return probabilities > threshold


def rounded(scores: Tensor, group: UnitGroup, mask: Tensor) -> Tensor:
    """Return the mask of a group whose units do not compete, with its panels rounded by the scores."""
    if group.quantum == 1:
        return mask
    (whole,) = round_panels([group], [ranked(scores.detach().float())], [mask])
    return whole


def growing_penalty(
    scores: Mapping[str, Tensor], regularisation: float, end: int, step: int
) -> Tensor | None:
    """Return lambda(t) * mean over groups of mean(sigmoid(S)), or None if ``regularisation`` is 0.

    lambda(t) = ``regularisation`` * (1 - (1 - t / end)^3), constant from step ``end`` on.
    """
    if not regularisation:
        return None
    weight = Ramp(0, end).at(step, Fraction(0), exact("regularisation", regularisation))
    return float(weight) * mean_sigmoid(list(scores.values()))


def mean_sigmoid(scores: Sequence[Tensor], shift: float = 0.0) -> Tensor:
    """Return the mean over tensors of mean(sigmoid(S + shift)), differentiable.

    Each tensor counts the same, whatever its size. Only the scores are saved for the backward pass.
    """
    total = _MeanSigmoid.apply(scores[0], shift)
    for tensor in scores[1:]:
        total = total + _MeanSigmoid.apply(tensor, shift)
    return total / len(scores)


class _MeanSigmoid(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, scores: Tensor, shift: float) -> Tensor:
        ctx.save_for_backward(scores)
        ctx.shift = shift
        return torch.sigmoid(scores + shift).mean()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (gradient,) = gradients
        (scores,) = ctx.saved_tensors
        probabilities = torch.sigmoid(scores + ctx.shift)
        return probabilities * (1 - probabilities) * (gradient / scores.numel()), None


def require_positive(options: object, *names: str) -> None:
    """Raise ValueError unless these fields are positive and finite."""
    for name in names:
        if not 0 < getattr(options, name) < math.inf:
            raise ValueError(f"{name} must be positive, got {getattr(options, name)}")


def require_not_negative(options: object, *names: str) -> None:
    """Raise ValueError unless these fields are finite and at least 0."""
    for name in names:
        if not 0 <= getattr(options, name) < math.inf:
            raise ValueError(f"{name} must be at least 0, got {getattr(options, name)}")
