"""Methods that learn their masks while they train. Their rules are in :mod:`sparsebert.mask_learning`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from sparsebert.lottery.experiment import Experiment, RunConfig
from sparsebert.lottery.mask_learning_method import LearnedMethod
from sparsebert.lottery.method import register
from sparsebert.mask_learning import l0, movement, smp
from sparsebert.mask_learning.learner import Learner
from sparsebert.mask_learning.smp import Mask

if TYPE_CHECKING:
    from sparsebert.training.best_masks import BestChoice


@register("gradual")
@dataclass(frozen=True)
class GradualMagnitude(LearnedMethod, movement.GradualMagnitudeRule):
    __doc__ = movement.GradualMagnitudeRule.__doc__


@register("movement")
@dataclass(frozen=True)
class Movement(LearnedMethod, movement.MovementRule):
    __doc__ = movement.MovementRule.__doc__


@dataclass(frozen=True)
class _ByPenalty(LearnedMethod):
    """Base of the methods whose scores never compete: penalty and threshold decide how much stays."""

    @property
    def decides_sparsity(self) -> bool:
        return True

    def require_units(self, granularity: str, scope: str) -> None:
        super().require_units(granularity, scope)
        if scope != self.scope:
            raise ValueError(f"method {self.name} compares no scores: scope {scope!r} means nothing to it")


@register("soft-movement")
@dataclass(frozen=True)
class SoftMovement(_ByPenalty, movement.SoftMovementRule):
    __doc__ = movement.SoftMovementRule.__doc__


@register("l0")
@dataclass(frozen=True)
class HardConcrete(_ByPenalty, l0.HardConcreteRule):
    __doc__ = l0.HardConcreteRule.__doc__


@register("smp")
@dataclass(frozen=True)
class StaticModelPruning(LearnedMethod, smp.StaticModelPruningRule):
    __doc__ = f"""{smp.StaticModelPruningRule.__doc__}
    ``choose_every``: every so many steps, once the density is near what is asked for, and at the end the
    masks are judged by the validation data, and the best are the run's, as in the released scripts (1000, or
    an epoch of a small task). What is chosen by the validation data looks better there than it is: judge it
    by other data. ``search`` in the ticket's metadata says which were chosen.
    """

    choose_every: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.choose_every is not None and self.choose_every < 1:
            raise ValueError(f"choose_every must be at least 1 step, not {self.choose_every}")

    @property
    def scope(self) -> str:
        return {Mask.GLOBAL: "global", Mask.SHARED: "type"}.get(self.mask, "matrix")

    @property
    def decides_sparsity(self) -> bool:
        return self.mask is Mask.THRESHOLD

    def require_units(self, granularity: str, scope: str) -> None:
        super().require_units(granularity, scope)
        if scope != self.scope:
            raise ValueError(f"mask {self.mask.value} of smp means scope {self.scope!r}, not {scope!r}")

    def require(self, experiment: Experiment, request: RunConfig) -> None:
        if self.choose_every is not None and experiment.judge is None:
            raise ValueError("choose_every needs an experiment with a judge: a metric to choose by")

    def choice(
        self, learner: Learner, experiment: Experiment, request: RunConfig, file: Path
    ) -> BestChoice | None:
        if self.choose_every is None:
            return None
        # Late: it needs transformers' Trainer, and methods are listed without it.
        from sparsebert.training.best_masks import BestChoice

        judge, goal = experiment.judge, learner.goal
        assert judge is not None
        return BestChoice(
            learner,
            lambda: judge(experiment.model, None, request.training.seed),
            self.choose_every,
            lambda step: self.is_near(goal, step),
            file,
        )
