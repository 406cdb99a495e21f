"""Static Model Pruning (SMP)."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from sparsebert.lottery.experiment import Experiment, RunConfig
from sparsebert.lottery.mask_learning_method import MaskLearningMethod
from sparsebert.lottery.method import register, require_at_least_one
from sparsebert.lottery.option_help import REGULARISATION, SCORES_LEARNING_RATE, THRESHOLD
from sparsebert.mask_learning.learner import Learner
from sparsebert.mask_learning.smp import CurveName, Mask, Over, StaticModelPruningRule

if TYPE_CHECKING:
    from sparsebert.training.best_masks import BestMasks

_SCOPES = {Mask.GLOBAL: "global", Mask.SHARED: "type"}


@register("smp")
@dataclass(frozen=True)
class StaticModelPruning(MaskLearningMethod):
    """Static Model Pruning (Jiang et al. 2023, "Pruning Pre-trained Language Models Without Fine-Tuning").

    See :class:`sparsebert.mask_learning.smp.StaticModelPruningRule` for the equations and the other options.

    Attributes:
        choose_every: Steps between two evaluations of the masks on the validation data, once the density is
            near its target, and one at the end; the best masks become the run's, as in the released scripts
            (1000, or an epoch of a small task). Validation data flatter the masks that they select: report
            results on other data. ``search`` in the ticket's metadata holds the step and the metric.
    """

    rule_type = StaticModelPruningRule

    scores_learning_rate: float = field(
        default=StaticModelPruningRule.scores_learning_rate, metadata=SCORES_LEARNING_RATE
    )
    mask: Mask = field(default=StaticModelPruningRule.mask, metadata={"help": "smp: S, or L, G, T"})
    ramp_steps: int | None = field(
        default=None, metadata={"help": "smp: steps over which the density falls; 7/12 of the run"}
    )
    curve: CurveName = field(
        default=StaticModelPruningRule.curve,
        metadata={"help": "smp: along which it falls, cubic or linear"},
    )
    regularisation: float = field(default=StaticModelPruningRule.regularisation, metadata=REGULARISATION)
    regularisation_over: Over = field(
        default=StaticModelPruningRule.regularisation_over,
        metadata={"help": "smp: the penalty grows over the run, or the fall of the density"},
    )
    temperature: float | None = field(default=None, metadata={"help": "smp, mask S: divides the scores, 1"})
    threshold: float = field(default=StaticModelPruningRule.threshold, metadata=THRESHOLD)
    label_words: str | None = field(
        default=None,
        metadata={"help": "smp: a word for each label, terrible,great, or task for known ones"},
    )
    template: str | None = field(
        default=None,
        metadata={"help": "smp: text around the examples', with a blank for the words: '{0} [MASK]'"},
    )
    smp_compat: bool = field(default=False, metadata={"help": "smp: as its released code computes"})
    choose_every: int | None = field(
        default=None,
        metadata={"help": "smp: steps between judgements by the validation data; the best masks are kept"},
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        require_at_least_one(self, "choose_every")

    @property
    def scope(self) -> str:
        return _SCOPES.get(self.mask, "matrix")

    @property
    def decides_sparsity(self) -> bool:
        return self.mask is Mask.THRESHOLD

    def require_units(self, granularity: str, scope: str) -> None:
        super().require_units(granularity, scope)
        if scope != self.scope:
            raise ValueError(f"mask {self.mask.value} of smp needs scope {self.scope!r}, got {scope!r}")

    def require(self, experiment: Experiment, config: RunConfig) -> None:
        if self.choose_every is not None and experiment.judge is None:
            raise ValueError("choose_every needs an experiment with a judge, which evaluates the masks")

    def best_masks(
        self, learner: Learner, experiment: Experiment, config: RunConfig, file: Path
    ) -> BestMasks | None:
        if self.choose_every is None:
            return None
        # Late: it needs transformers' Trainer, and methods are listed without it.
        from sparsebert.training.best_masks import BestMasks

        judge, rule, goal = experiment.judge, learner.rule, learner.goal
        assert judge is not None
        assert isinstance(rule, StaticModelPruningRule)
        return BestMasks(
            learner,
            lambda: judge(experiment.model, None, config.training.seed),
            self.choose_every,
            lambda step: rule.is_near(goal, step),
            file,
        )
