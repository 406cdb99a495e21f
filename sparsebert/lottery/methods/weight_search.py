"""Search for the fewest weights that hold a metric, and the subnetworks such a ticket is judged by."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, ClassVar

from torch import nn

from sparsebert.bert import structure
from sparsebert.lottery.experiment import Experiment, RunConfig
from sparsebert.lottery.method import Round, SearchingMethod, Source, register
from sparsebert.lottery.methods.from_ticket import GivenTicket
from sparsebert.lottery.methods.metric_search import MetricThresholdSearch
from sparsebert.pruning import Magnitude, Method, Random, Share, levels
from sparsebert.pruning.greedy_search import least_metric
from sparsebert.pruning.prune import prune
from sparsebert.pruning.sparsity_schedule import exact, require_share
from sparsebert.tickets.ticket import Ticket


@register("magnitude-search")
@dataclass(frozen=True)
class MagnitudeSearch(MetricThresholdSearch):
    """Train the dense model, prune its smallest weights and biases as long as its metric stays above
    ``threshold`` times that of the whole, rewind and train what is left: the good subnetworks of magnitude
    pruning in Prasanna et al. 2020, "When BERT Plays the Lottery, All Tickets Are Winning", section 3.

    It finds its sparsity itself; ``step`` of what remains goes at a time, without training in between, and at
    most ``most_steps`` times (the published code looks at ten and never keeps the tenth). All biases of the
    encoder's matrices compete but those of the second feed-forward ones. What the metric is taken on, see
    :class:`MetricThresholdSearch`.
    """

    step: float = 0.1
    most_steps: int = 9

    def __post_init__(self) -> None:
        super().__post_init__()
        require_share(self, "step")
        if self.most_steps < 1:
            raise ValueError(f"most_steps must be at least 1, not {self.most_steps}")

    def require_units(self, granularity: str, scope: str) -> None:
        _require_weights(self.name, granularity, scope)

    def require(self, experiment: Experiment, request: RunConfig) -> None:
        """Raise ValueError without a judge, and for steps of which the last would keep nothing."""
        super().require(experiment, request)
        prune(experiment.model, "random", sparsity=self._last_level, **_choices(request))

    @property
    def _last_level(self) -> Fraction:
        return 1 - (1 - exact("step", self.step)) ** self.most_steps

    def found(self, experiment: Experiment, request: RunConfig, folder: Path, round_: Round) -> Ticket:
        """The good subnetwork; ``search`` in its metadata holds sparsity and metric of each step.

        Raises ValueError for a dense model whose metric is not positive.
        """
        judge, model = self.judge(experiment, request), experiment.model
        choices = _choices(request)
        good, metric = prune(model, sparsity=0, **choices), judge()
        floor = least_metric(metric, self.threshold)
        trace = [{"sparsity": 0.0, "metric": metric}]
        for level in levels(self._last_level, self.step, Share.REMAINING):
            tried = prune(model, sparsity=level, ticket=good, **choices)
            tried.apply_(model)
            metric = judge()
            trace.append({"sparsity": tried.sparsity, "metric": metric})
            if metric < floor:
                break
            good = tried
        good.metadata["search"] = trace
        return good


@register("bad-weights")
@dataclass(frozen=True)
class BadWeights(SearchingMethod):
    """As many weights and biases as the ticket keeps, the smallest of the trained dense model: the bad
    subnetworks of magnitude pruning in Prasanna et al. 2020."""

    needs_ticket: ClassVar[bool] = True

    def rounds(self, sparsity: Fraction) -> tuple[Round, ...]:
        return (Round(Source.DENSE), Round(Source.SEARCH, sparsity))

    def require_units(self, granularity: str, scope: str) -> None:
        _require_weights(self.name, granularity, scope)

    def found(self, experiment: Experiment, request: RunConfig, folder: Path, round_: Round) -> Ticket:
        assert request.ticket is not None
        worst = Magnitude(keep_smallest=True)
        return _as_many(worst, request.ticket, experiment.model, request.training.seed)


@register("random-weights")
@dataclass(frozen=True)
class RandomWeights(GivenTicket):
    """As many weights and biases as the ticket keeps, at random: the random subnetworks of magnitude pruning
    in Prasanna et al. 2020."""

    def given(self, ticket: Ticket, model: nn.Module, seed: int) -> Ticket:
        return _as_many(Random(), ticket, model, seed)


def _choices(request: RunConfig) -> dict[str, Any]:
    """What :func:`prune` is told beside method and sparsity."""
    return {"include_biases": True, "seed": request.training.seed, **asdict(request.units)}


def _as_many(scores: Method, good: Ticket, model: nn.Module, seed: int) -> Ticket:
    """By other scores, among all weights of the encoder: a ticket of heads leaves whole matrices out. With
    the pooler and with biases where the ticket has masks of them."""
    pooler = structure(model).pooler
    choices: dict[str, Any] = {
        "include_biases": bool(good.bias_masks),
        "include_pooler": pooler in good.masks,
    }
    whole = prune(model, sparsity=0, **choices)
    pruned = sum(int((~mask).sum()) for mask in (*good.masks.values(), *good.bias_masks.values()))
    total = sum(mask.numel() for mask in (*whole.masks.values(), *whole.bias_masks.values()))
    made = prune(model, scores, sparsity=Fraction(pruned, total), seed=seed, **choices)
    made.metadata["history"] = [*good.metadata.get("history", []), *made.metadata["history"]]
    return made


def _require_weights(method: str, granularity: str, scope: str) -> None:
    if (granularity, scope) != ("element", "global"):
        raise ValueError(
            f"method {method} lets all single weights compete: granularity 'element' and scope 'global', "
            f"not {granularity!r} and {scope!r}"
        )
