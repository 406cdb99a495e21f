"""Baselines of a ticket of single weights: the same number of bad or random ones (Prasanna et al. 2020)."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, ClassVar

from torch import nn

from sparsebert.bert import structure
from sparsebert.lottery.experiment import Experiment, RunConfig
from sparsebert.lottery.method import Round, SearchingMethod, Source, register
from sparsebert.lottery.methods.from_ticket import FromTicket
from sparsebert.lottery.methods.weight_search import require_single_weights
from sparsebert.pruning import Magnitude, Method, Random
from sparsebert.pruning.prune import prune
from sparsebert.tickets.ticket import Ticket


@register("bad-weights")
@dataclass(frozen=True)
class BadWeights(SearchingMethod):
    """As many weights and biases as the user's ticket keeps, the smallest of the trained dense model: the bad
    subnetworks of magnitude pruning in Prasanna et al. 2020."""

    needs_ticket: ClassVar[bool] = True

    def rounds(self, sparsity: Fraction) -> tuple[Round, ...]:
        return (Round(Source.DENSE), Round(Source.SEARCH, sparsity))

    def require_units(self, granularity: str, scope: str) -> None:
        require_single_weights(self.name, granularity, scope)

    def find_ticket(self, experiment: Experiment, config: RunConfig, folder: Path, round_: Round) -> Ticket:
        assert config.ticket is not None
        smallest = Magnitude(keep_smallest=True)
        return _as_many(smallest, config.ticket, experiment.model, config.training.seed)


@register("random-weights")
@dataclass(frozen=True)
class RandomWeights(FromTicket):
    """As many weights and biases as the user's ticket keeps, at random: the random subnetworks of magnitude
    pruning in Prasanna et al. 2020."""

    def derive_ticket(self, ticket: Ticket, model: nn.Module, seed: int) -> Ticket:
        return _as_many(Random(), ticket, model, seed)


def _as_many(scores: Method, good: Ticket, model: nn.Module, seed: int) -> Ticket:
    """Return a ticket that prunes as many weights as ``good``, by other scores.

    All matrices of the encoder are prunable, because the matrices of ``good`` may not suffice: a ticket of
    heads does not mask the feed-forward matrices. Pooler and biases are prunable if ``good`` masks them.
    """
    pooler = structure(model).pooler
    arguments: dict[str, Any] = {
        "include_biases": bool(good.bias_masks),
        "include_pooler": pooler in good.masks,
    }
    dense = prune(model, sparsity=0, **arguments)
    pruned = sum(int((~mask).sum()) for mask in (*good.masks.values(), *good.bias_masks.values()))
    total = sum(mask.numel() for mask in (*dense.masks.values(), *dense.bias_masks.values()))
    ticket = prune(model, scores, sparsity=Fraction(pruned, total), seed=seed, **arguments)
    ticket.metadata["history"] = [*good.metadata.get("history", []), *ticket.metadata["history"]]
    return ticket
