"""Baselines of a ticket of heads and MLPs: the same number of bad or random ones (Prasanna et al. 2020)."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import nn

from sparsebert.lottery.method import register
from sparsebert.lottery.methods.from_ticket import FromTicket
from sparsebert.pruning.head_mlp_masks import UnitMasks
from sparsebert.tickets.ticket import Ticket


@register("bad-units")
@dataclass(frozen=True)
class BadUnits(FromTicket):
    """As many heads and MLPs as the user's ticket keeps, among those that it prunes: the bad subnetworks of
    Prasanna et al. 2020, section 3."""

    def derive_ticket(self, ticket: Ticket, model: nn.Module, seed: int) -> Ticket:
        return _baseline(self.name, ticket, UnitMasks.of(ticket, model).bad(seed), model, seed)


@register("random-units")
@dataclass(frozen=True)
class RandomUnits(FromTicket):
    """As many heads and MLPs as the user's ticket keeps, at random: the random subnetworks of
    Prasanna et al. 2020.

    Attributes:
        bernoulli: Keep each unit independently with the same probability instead, so that the number of kept
            units varies, as published.
    """

    bernoulli: bool = field(
        default=False,
        metadata={"help": "draw each unit independently, so that the number of units varies, as published"},
    )

    def derive_ticket(self, ticket: Ticket, model: nn.Module, seed: int) -> Ticket:
        masks = UnitMasks.of(ticket, model).random(seed, self.bernoulli)
        return _baseline(self.name, ticket, masks, model, seed)


def _baseline(method: str, good: Ticket, masks: UnitMasks, model: nn.Module, seed: int) -> Ticket:
    """Return the ticket of the masks. Its history continues the history of the ``good`` ticket."""
    step = {"operation": method, "seed": seed, "sparsity": good.sparsity}
    history = [*good.metadata.get("history", []), step]
    ticket = masks.ticket(model, {"method": method, "seed": seed, "history": history})
    ticket.metadata["model"] = good.metadata.get("model", ticket.metadata["model"])
    return ticket
