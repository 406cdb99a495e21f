"""Search for the smallest number of heads and MLPs that maintain a metric."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from sparsebert.bert import structure
from sparsebert.lottery.experiment import Experiment, RunConfig
from sparsebert.lottery.method import Round, register
from sparsebert.lottery.methods.metric_search import MetricThresholdSearch
from sparsebert.lottery.option_help import ACCUMULATE
from sparsebert.lottery.start_ticket import require_biases_kept
from sparsebert.pruning.gates import GateSite, gate_sites, gated
from sparsebert.pruning.greedy_search import Scored, Search
from sparsebert.pruning.head_mlp_masks import UnitMasks
from sparsebert.pruning.methods.head_importance import gate_importance, normalised
from sparsebert.pruning.sparsity_schedule import require_share
from sparsebert.tickets.ticket import Ticket


@register("importance-search")
@dataclass(frozen=True)
class ImportanceSearch(MetricThresholdSearch):
    """Search by importance: the good structured subnetworks of Prasanna et al. 2020, "When BERT Plays the
    Lottery, All Tickets Are Winning", section 3.

    Trains the dense model, masks its least important heads and MLPs as long as the metric is at least
    ``threshold`` times the dense metric, then rewinds and trains the rest. The search decides the sparsity;
    granularity is "head+mlp", and MLPs are pruned whole. A step masks ``share_of_heads`` of all heads and one
    MLP (see :class:`sparsebert.pruning.greedy_search.Search`). Importance is summed over ``batches`` batches
    of the training data (see :class:`MetricThresholdSearch`).

    From a start ticket, the first round trains that ticket, and the search goes on from its heads and MLPs:
    ``threshold`` is then a share of the metric of the trained start ticket.

    Attributes:
        accumulate: Never clear the gradients of the masks between batches, as in the published code.
        share_of_heads: Share of all heads that a step masks.
        rescore: Recompute the scores after a rejected mask. The published code continues with the scores of
            the rejected mask.
    """

    takes_start_ticket: ClassVar[bool] = True

    accumulate: bool = field(default=False, metadata=ACCUMULATE)
    share_of_heads: float = field(
        default=0.1, metadata={"help": "share of the heads to mask in each search step"}
    )
    rescore: bool = field(default=True, metadata={"help": "recompute the scores after a rejected mask"})

    def __post_init__(self) -> None:
        super().__post_init__()
        require_share(self, "share_of_heads")

    @property
    def granularity(self) -> str:
        return "head+mlp"

    def require_units(self, granularity: str, scope: str) -> None:
        require_heads_and_mlps(self.name, granularity)

    def require_start(self, start: Ticket, model: nn.Module, config: RunConfig, steps: int) -> None:
        require_biases_kept(start, self.name, removes_mlps=True)

    def find_ticket(self, experiment: Experiment, config: RunConfig, folder: Path, round_: Round) -> Ticket:
        """Search for the smallest ticket that maintains the metric.

        ``search`` in the ticket's metadata holds the heads, MLPs and metric of each step. Raises ValueError
        as :class:`~sparsebert.pruning.greedy_search.Search` does.
        """
        judge, model, settings = self.judge(experiment, config), experiment.model, config.training
        batches = experiment.first_batches(self.batches, settings.batch_size, settings.seed)
        sites = head_mlp_sites(model)
        kinds = {name: site.kind for name, site in sites.items()}

        def score(masks: UnitMasks) -> Scored:
            gates = _gates(masks, sites)
            with gated(model, sites, gates):
                metric = judge()
            importance = gate_importance(model, sites, batches, gates=gates, accumulate=self.accumulate)
            scores = list(normalised(importance, kinds).values())
            layers = len(masks.mlps)
            return Scored(metric, torch.stack(scores[:layers]), torch.cat(scores[layers:]))

        trace: list[dict[str, Any]] = []

        def record(masks: UnitMasks, metric: float) -> None:
            trace.append({"heads": int(masks.heads.sum()), "mlps": int(masks.mlps.sum()), "metric": metric})

        search = Search(self.threshold, self.share_of_heads, self.rescore)
        start = config.start_ticket
        first = UnitMasks.whole(model) if start is None else UnitMasks.of(start, model)
        masks = search(first, score, record)
        metadata = {"method": self.name, "seed": settings.seed, "search": trace}
        if start is not None:
            metadata["history"] = [*start.metadata["history"], {"operation": "search", "method": self.name}]
        return masks.ticket(model, metadata)


def head_mlp_sites(model: nn.Module) -> dict[str, GateSite]:
    """Return the gate sites of all heads, then of all MLPs."""
    bert = structure(model)
    return gate_sites(bert, "head") | gate_sites(bert, "mlp")


def require_heads_and_mlps(method: str, granularity: str) -> None:
    """Raise ValueError for a granularity other than "head+mlp"."""
    if granularity != "head+mlp":
        raise ValueError(f"granularity of method {method} must be head+mlp, got {granularity!r}")


def _gates(masks: UnitMasks, sites: dict[str, GateSite]) -> dict[str, Tensor]:
    rows = (*masks.heads.float(), *masks.mlps.float()[:, None])
    return dict(zip(sites, rows, strict=True))
