"""Static Model Pruning (SMP)."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from sparsebert.lottery.experiment import Experiment, RunConfig
from sparsebert.lottery.mask_learning_method import MaskLearningMethod
from sparsebert.lottery.method import register, require_at_least_one
from sparsebert.lottery.option_help import REGULARISATION, SCORES_LEARNING_RATE
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
            near its target; the last step is evaluated too. The scores of a step are evaluated with the masks
            of the target density. The best masks become the run's masks, as in the released scripts (1000
            steps, or an epoch of a small task), which evaluate masks up to 0.01 denser. The metric of masks
            selected on validation data is optimistic there: report results on other data. ``search`` in the
            ticket's metadata holds the step and the metric. None keeps the last masks.
    """

    rule_type = StaticModelPruningRule

    scores_learning_rate: float = field(
        default=StaticModelPruningRule.scores_learning_rate, metadata=SCORES_LEARNING_RATE
    )
    mask: Mask = field(
        default=StaticModelPruningRule.mask,
        metadata={
            "help": "weights to keep: L (highest scores of each matrix), S (like L, but the share of a "
            "matrix depends on its scores), G (highest scores of all matrices) or T (scores above a "
            "threshold)"
        },
    )
    ramp_steps: int | None = field(
        default=None, metadata={"help": "steps over which the density falls; 7/12 of the run if omitted"}
    )
    curve: CurveName = field(
        default=StaticModelPruningRule.curve,
        metadata={"help": "curve along which the density falls: cubic or linear"},
    )
    regularisation: float = field(default=StaticModelPruningRule.regularisation, metadata=REGULARISATION)
    regularisation_over: Over = field(
        default=StaticModelPruningRule.regularisation_over,
        metadata={"help": "period over which the penalty grows: run, or density (while the density falls)"},
    )
    temperature: float | None = field(
        default=None, metadata={"help": "with --mask S: temperature of the scores; 1 if omitted"}
    )
    threshold: float = field(
        default=StaticModelPruningRule.threshold,
        metadata={"help": "with --mask T: sigmoid of the score above which a weight is kept"},
    )
    label_words: str | None = field(
        default=None,
        metadata={
            "help": "one word per label, such as terrible,great, one for scores; task for the paper's words"
        },
    )
    template: str | None = field(
        default=None,
        metadata={"help": "text around each example, with a blank for the label word: '{0} [MASK]'"},
    )
    smp_compat: bool = field(default=False, metadata={"help": "compute as the released code does"})
    choose_every: int | None = field(
        default=None,
        metadata={
            "help": "steps between evaluations on the validation data, to keep the best masks; the last "
            "masks if omitted"
        },
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
            raise ValueError("choose_every needs an experiment with a judge to evaluate the masks: set judge")

    def best_masks(
        self, learner: Learner, experiment: Experiment, config: RunConfig, file: Path
    ) -> BestMasks | None:
        if self.choose_every is None:
            return None
        # Imported late: it needs transformers' Trainer, and methods are listed without it.
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
