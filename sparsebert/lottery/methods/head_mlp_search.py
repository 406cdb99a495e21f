"""Search for the fewest heads and MLPs that hold a metric, and the subnetworks such a ticket is judged by."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from sparsebert.bert import structure
from sparsebert.lottery.experiment import Experiment, RunConfig
from sparsebert.lottery.method import LotteryMethod, Round, register
from sparsebert.lottery.methods.from_ticket import GivenTicket
from sparsebert.lottery.methods.heads_and_mlps import HeadsAndMlps
from sparsebert.lottery.methods.metric_search import MetricThresholdSearch
from sparsebert.pruning.gates import gate_sites, gated
from sparsebert.pruning.greedy_search import Scored, Search
from sparsebert.pruning.head_mlp_masks import UnitMasks
from sparsebert.pruning.methods.head_importance import gate_importance, normalised
from sparsebert.pruning.sparsity_schedule import require_share
from sparsebert.tickets.ticket import Ticket


@register("importance-search")
@dataclass(frozen=True)
class ImportanceSearch(MetricThresholdSearch, HeadsAndMlps):
    """Train the dense model, mask its least important heads and MLPs as long as its metric stays above
    ``threshold`` times that of the whole, rewind and train what is left: the good structured subnetworks of
    Prasanna et al. 2020, "When BERT Plays the Lottery, All Tickets Are Winning", section 3.

    It finds its sparsity itself; granularity is "head+mlp", and MLPs are removed whole. ``share`` of all
    heads and one MLP go in a step (see :class:`sparsebert.pruning.greedy_search.Search`). Importance is summed
    over the batches that the metric is taken on, see :class:`MetricThresholdSearch`. The published search never clears the
    gradients of its masks (``accumulate``), and goes on with the scores of masks that it rejected
    (``rescore=False``).
    """

    share_of_heads: float = 0.1
    rescore: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        require_share(self, "share_of_heads")

    def found(self, experiment: Experiment, request: RunConfig, folder: Path, round_: Round) -> Ticket:
        """The good subnetwork; ``search`` in its metadata holds heads, MLPs and metric of each step.

        Raises ValueError as Search does.
        """
        judge, model, settings = self.judge(experiment, request), experiment.model, request.training
        batches = experiment.first_batches(self.batches, settings.batch_size, settings.seed)
        known = structure(model)
        sites = gate_sites(known, "head") | gate_sites(known, "mlp")
        kinds = {name: site.kind for name, site in sites.items()}

        def score(masks: UnitMasks) -> Scored:
            rows = (*masks.heads.float(), *masks.mlps.float()[:, None])
            gates = dict(zip(sites, rows, strict=True))
            with gated(model, sites, gates):
                metric = judge()
            found = gate_importance(model, sites, batches, gates=gates, accumulate=self.accumulate)
            ready = list(normalised(found, kinds).values())
            layers = len(masks.mlps)
            return Scored(metric, torch.stack(ready[:layers]), torch.cat(ready[layers:]))

        trace: list[dict[str, Any]] = []

        def note(masks: UnitMasks, metric: float) -> None:
            trace.append({"heads": int(masks.heads.sum()), "mlps": int(masks.mlps.sum()), "metric": metric})

        search = Search(self.threshold, self.share_of_heads, self.rescore)
        good = search(UnitMasks.whole(model), score, note)
        return good.ticket(model, {"method": self.name, "seed": settings.seed, "search": trace})


@register("bad-units")
@dataclass(frozen=True)
class BadUnits(GivenTicket):
    """As many heads and MLPs as the ticket keeps, from those that it prunes: the bad subnetworks of
    Prasanna et al. 2020, section 3."""

    def given(self, ticket: Ticket, model: nn.Module, seed: int) -> Ticket:
        return _judging(self, ticket, UnitMasks.of(ticket, model).bad(seed), model, seed)


@register("random-units")
@dataclass(frozen=True)
class RandomUnits(GivenTicket):
    """As many heads and MLPs as the ticket keeps, at random: the random subnetworks of Prasanna et al. 2020.

    ``bernoulli``: each with that probability instead, as in their code, so that the number varies.
    """

    bernoulli: bool = False

    def given(self, ticket: Ticket, model: nn.Module, seed: int) -> Ticket:
        masks = UnitMasks.of(ticket, model).random(seed, self.bernoulli)
        return _judging(self, ticket, masks, model, seed)


def _judging(method: LotteryMethod, good: Ticket, masks: UnitMasks, model: nn.Module, seed: int) -> Ticket:
    step = {"operation": method.name, "seed": seed, "sparsity": good.sparsity}
    history = [*good.metadata.get("history", []), step]
    made = masks.ticket(model, {"method": method.name, "seed": seed, "history": history})
    made.metadata["model"] = good.metadata.get("model", made.metadata["model"])
    return made
