"""What the methods have in common that prune for as long as a metric holds: Prasanna et al. 2020."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from fractions import Fraction

from sparsebert.lottery.experiment import Experiment, RunConfig
from sparsebert.lottery.method import NeedsBatches, Round, SearchingMethod, Source
from sparsebert.pruning.sparsity_schedule import require_share


class JudgedOn(StrEnum):
    """The examples that a search takes its metric on."""

    TRAIN = "train"
    VALIDATION = "validation"


@dataclass(frozen=True)
class MetricThresholdSearch(SearchingMethod, NeedsBatches):
    """Base of them: a dense round, then a search for the smallest ticket whose metric, before any training of
    its own, is at least ``threshold`` times that of the dense model.

    The metric is taken on as many examples of the training data as ``batches`` batches hold, so that the
    validation data stay unseen; the published searches look at those (``judged_on="validation"``).
    """

    threshold: float = 0.9
    judged_on: JudgedOn = JudgedOn.TRAIN

    def __post_init__(self) -> None:
        super().__post_init__()
        require_share(self, "threshold")

    @property
    def decides_sparsity(self) -> bool:
        return True

    def rounds(self, sparsity: Fraction) -> tuple[Round, ...]:
        return (Round(Source.DENSE), Round(Source.SEARCH))

    def require(self, experiment: Experiment, request: RunConfig) -> None:
        if experiment.judge is None:
            raise ValueError(f"method {self.name} needs an experiment with a judge: a metric to search by")

    def judge(self, experiment: Experiment, request: RunConfig) -> Callable[[], float]:
        """The metric of the experiment's model as it is when this is called."""
        judge, model, settings = experiment.judge, experiment.model, request.training
        assert judge is not None
        examples = self.batches * settings.batch_size if self.judged_on is JudgedOn.TRAIN else None
        return lambda: judge(model, examples, settings.seed)
