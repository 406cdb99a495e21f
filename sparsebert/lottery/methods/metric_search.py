"""Searches that prune until a metric falls below a threshold (Prasanna et al. 2020)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum
from fractions import Fraction

from sparsebert.lottery.experiment import Experiment, RunConfig
from sparsebert.lottery.method import Round, SearchingMethod, Source, require_at_least_one
from sparsebert.lottery.option_help import BATCHES
from sparsebert.pruning.sparsity_schedule import require_share


class JudgedOn(StrEnum):
    """The data on which a search evaluates its metric."""

    TRAIN = "train"
    VALIDATION = "validation"


@dataclass(frozen=True)
class MetricThresholdSearch(SearchingMethod):
    """Base class of the searches for the smallest ticket whose metric reaches a threshold.

    A dense round comes first, then the search. The metric of a candidate is evaluated without training it.

    Attributes:
        batches: Number of batches of training data that the search uses.
        threshold: Minimum metric of a ticket, as a share of the dense model's metric.
        judged_on: Data of the metric. With training data, the validation data remain unseen; the published
            searches evaluate on validation data.
    """

    batches: int = field(default=32, metadata=BATCHES)
    threshold: float = field(default=0.9, metadata={"help": "share of the dense metric to retain"})
    judged_on: JudgedOn = field(
        default=JudgedOn.TRAIN, metadata={"help": "data to evaluate on: train, or validation as published"}
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        require_at_least_one(self, "batches")
        require_share(self, "threshold")

    @property
    def decides_sparsity(self) -> bool:
        return True

    def rounds(self, sparsity: Fraction) -> tuple[Round, ...]:
        return (Round(Source.DENSE), Round(Source.SEARCH))

    def require(self, experiment: Experiment, config: RunConfig) -> None:
        if experiment.judge is None:
            raise ValueError(
                f"method {self.name} needs an experiment with a judge to evaluate the metric: set judge"
            )

    def judge(self, experiment: Experiment, config: RunConfig) -> Callable[[], float]:
        """Return a function that evaluates the metric of the experiment's model in its state at the call."""
        judge, model, settings = experiment.judge, experiment.model, config.training
        assert judge is not None
        examples = self.batches * settings.batch_size if self.judged_on is JudgedOn.TRAIN else None
        return lambda: judge(model, examples, settings.seed)
