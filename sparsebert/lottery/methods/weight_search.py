"""Search for the smallest number of single weights that maintain a metric."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

from sparsebert.lottery.experiment import Experiment, RunConfig
from sparsebert.lottery.method import Round, register, require_at_least_one
from sparsebert.lottery.methods.metric_search import MetricThresholdSearch
from sparsebert.lottery.option_help import STEP
from sparsebert.pruning import Share, levels
from sparsebert.pruning.greedy_search import least_metric
from sparsebert.pruning.prune import prune
from sparsebert.pruning.sparsity_schedule import exact, require_share
from sparsebert.tickets.ticket import Ticket


@register("magnitude-search")
@dataclass(frozen=True)
class MagnitudeSearch(MetricThresholdSearch):
    """Search by magnitude: the good subnetworks of magnitude pruning in Prasanna et al. 2020, "When BERT
    Plays the Lottery, All Tickets Are Winning", section 3.

    Trains the dense model, prunes its smallest weights and biases as long as the metric is at least
    ``threshold`` times the dense metric, then rewinds and trains the rest. The search decides the sparsity
    and does not train between its steps. The biases of the encoder's matrices compete too, except for the
    biases of the second feed-forward matrices. See :class:`MetricThresholdSearch` for the data of the metric.

    Attributes:
        step: Share of the remaining weights that a step prunes.
        most_steps: Maximum number of steps. The published code evaluates ten steps and always rejects the
            tenth.
    """

    step: float = field(default=0.1, metadata=STEP)
    most_steps: int = field(default=9, metadata={"help": "maximum number of search steps"})

    def __post_init__(self) -> None:
        super().__post_init__()
        require_share(self, "step")
        require_at_least_one(self, "most_steps")

    def require_units(self, granularity: str, scope: str) -> None:
        require_single_weights(self.name, granularity, scope)

    def require(self, experiment: Experiment, config: RunConfig) -> None:
        """Raise ValueError if the experiment has no judge, or if the last step would prune all weights."""
        super().require(experiment, config)
        prune(experiment.model, "random", sparsity=self._last_level, **_arguments(config))

    @property
    def _last_level(self) -> Fraction:
        return 1 - (1 - exact("step", self.step)) ** self.most_steps

    def find_ticket(self, experiment: Experiment, config: RunConfig, folder: Path, round_: Round) -> Ticket:
        """Search for the sparsest ticket that maintains the metric.

        ``search`` in the ticket's metadata holds the sparsity and metric of each step. Raises ValueError for
        a dense model whose metric is not positive.
        """
        judge, model = self.judge(experiment, config), experiment.model
        arguments = _arguments(config)
        best, metric = prune(model, sparsity=0, **arguments), judge()
        floor = least_metric(metric, self.threshold)
        trace = [{"sparsity": 0.0, "metric": metric}]
        for level in levels(self._last_level, self.step, Share.REMAINING):
            candidate = prune(model, sparsity=level, ticket=best, **arguments)
            candidate.apply_(model)
            metric = judge()
            trace.append({"sparsity": candidate.sparsity, "metric": metric})
            if metric < floor:
                break
            best = candidate
        best.metadata["search"] = trace
        return best


def require_single_weights(method: str, granularity: str, scope: str) -> None:
    """Raise ValueError unless the units are single weights that compete globally."""
    if (granularity, scope) != ("element", "global"):
        raise ValueError(
            f"method {method} needs granularity 'element' and scope 'global', got {granularity!r} and "
            f"{scope!r}"
        )


def _arguments(config: RunConfig) -> dict[str, Any]:
    """Return the arguments of :func:`prune` except method and sparsity."""
    return {"include_biases": True, "seed": config.training.seed, **asdict(config.units)}
