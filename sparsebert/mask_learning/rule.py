"""What a method is that learns masks: a frozen dataclass that turns scores and step into masks."""

from __future__ import annotations

import abc
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from fractions import Fraction
from typing import Any, ClassVar

import torch
from torch import Tensor

from sparsebert.mask_learning.schedules import Ramp
from sparsebert.pruning.sparsity_schedule import exact
from sparsebert.pruning.top_k import Size, ranked, select_top
from sparsebert.pruning.unit_groups import UnitGroup, competition_groups


@dataclass(frozen=True)
class Goal:
    """Where a run leads: its optimizer steps, those in which the learning rate warms up, the density.

    ``task``: its name, and ``taught``: whether a teacher helps, for rules whose published settings differ by
    them.
    """

    steps: int
    warmup: int
    density: Fraction
    task: str = ""
    taught: bool = False


@dataclass(frozen=True)
class Candidates:
    """The units that masks are made of. ``types``: key -> query, key, value, ...; as in a Structure."""

    groups: tuple[UnitGroup, ...]
    types: Mapping[str, str]
    scope: str

    def competition_groups(self, scope: str | None = None) -> list[list[UnitGroup]]:
        """The groups whose units compete with each other, in the run's scope or in this one."""
        return competition_groups(self.groups, scope or self.scope, self.types)


@dataclass(frozen=True)
class Rule(abc.ABC):
    """Base of the rules. Scores and masks are those of units, by the names of their groups.

    Its scores are the magnitudes of the weights, unless it is :class:`Scored`.

    ``trains_weights``: the base model's weights are trained, but for its embeddings.
    """

    name: ClassVar[str]
    trains_weights: ClassVar[bool] = True

    @property
    def trains_head(self) -> bool:
        """Whether the task's head is trained."""
        return True

    def __post_init__(self) -> None:  # noqa: B027  (where the checks of options end)
        """Raise ValueError for options that make no sense."""

    def options(self) -> dict[str, Any]:
        """The rule's options by name, for the records."""
        return {each.name: getattr(self, each.name) for each in fields(self)}

    def check(self, goal: Goal) -> None:  # noqa: B027  (most methods fit every run)
        """Raise ValueError if the rule's schedule does not fit the run."""

    @abc.abstractmethod
    def masks(
        self, scores: Mapping[str, Tensor], candidates: Candidates, goal: Goal, step: int
    ) -> dict[str, Tensor]:
        """bool masks over units, True = keep: those of the given optimizer step, from 0; the run's result at
        ``goal.steps``.

        ``scores``: floating-point, of the shape of each group's grid. Raises ValueError for a NaN.
        """

    def penalty(self, scores: Mapping[str, Tensor], goal: Goal, step: int) -> Tensor | None:
        """What is added to the loss, a differentiable scalar; None for nothing."""
        return None


@dataclass(frozen=True)
class Scored(Rule):
    """Base of the rules that train scores of their own.

    ``first_score``: what every score is at the beginning.
    ``scores_learning_rate``: of the scores, which never decay; it follows the schedule of the weights'.
    """

    first_score: ClassVar[float] = 0.0

    scores_learning_rate: float = 1e-2

    def __post_init__(self) -> None:
        super().__post_init__()
        require_positive(self, "scores_learning_rate")


@dataclass(frozen=True)
class Gated(Scored):
    """Base of the rules that multiply weights by real numbers in [0, 1] instead of selecting them."""

    @abc.abstractmethod
    def gates(self, scores: Tensor, uniform: Tensor | None) -> Tensor:
        """The gates of units, differentiable in the scores and of their shape.

        ``uniform``: random numbers in [0, 1) of that shape, of which training draws its gates; None for those
        of the trained model.
        """


def keep_top(
    scores: Mapping[str, Tensor], competing: Sequence[UnitGroup], budget: Fraction, size: Size | None = None
) -> dict[str, Tensor]:
    """The highest of the groups' scores as :func:`sparsebert.pruning.top_k.select_top` keeps them.

    ``budget``: weights to keep; units, with ``size=1``.
    """
    ready = [ranked(scores[group.name].detach().float()) for group in competing]
    sizes = [group.sizes if size is None else size for group in competing]
    kept = select_top(ready, sizes, budget)
    return {group.name: mask for group, mask in zip(competing, kept, strict=True)}


def keep_share(scores: Mapping[str, Tensor], candidates: Candidates, density: Fraction) -> dict[str, Tensor]:
    """The highest scores of each scope until they make up that share of its weights."""
    masks: dict[str, Tensor] = {}
    for competing in candidates.competition_groups():
        budget = density * sum(group.weights for group in competing)
        masks |= keep_top(scores, competing, budget)
    return masks


def above(scores: Tensor, threshold: float) -> Tensor:
    """Where sigma(S) exceeds the threshold, bool. Raises ValueError for a NaN."""
    shares = torch.sigmoid(scores.detach())
    if shares.isnan().any():
        raise ValueError("a score is NaN")
    return shares > threshold


def growing_penalty(
    scores: Mapping[str, Tensor], regularisation: float, end: int, step: int
) -> Tensor | None:
    """lambda(t) * mean over matrices of the mean of sigma(S), where lambda(t) = ``regularisation`` *
    (1 - (1 - t / end)^3); None for a regularisation of 0."""
    if not regularisation:
        return None
    weight = Ramp(0, end).at(step, Fraction(0), exact("regularisation", regularisation))
    return float(weight) * mean_sigmoid(list(scores.values()))


def mean_sigmoid(scores: Sequence[Tensor], shift: float = 0.0) -> Tensor:
    """The mean over tensors of the mean of sigma(S + shift) of each, however large they are; differentiable.

    Nothing but the scores is kept for the backward pass.
    """
    total = _MeanSigmoid.apply(scores[0], shift)
    for each in scores[1:]:
        total = total + _MeanSigmoid.apply(each, shift)
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
        open_ = torch.sigmoid(scores + ctx.shift)
        return open_ * (1 - open_) * (gradient / scores.numel()), None


def require_positive(rule: object, *names: str) -> None:
    """Raise ValueError unless these fields are positive numbers."""
    for name in names:
        if not 0 < getattr(rule, name) < math.inf:
            raise ValueError(f"{name} must be positive, not {getattr(rule, name)}")


def require_not_negative(rule: object, *names: str) -> None:
    """Raise ValueError if one of these fields is negative or no finite number."""
    for name in names:
        if not 0 <= getattr(rule, name) < math.inf:
            raise ValueError(f"{name} must not be negative, not {getattr(rule, name)}")
