"""Baselines of any ticket: random positions at its sparsities, or other weights at its positions."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import nn

from sparsebert.lottery.method import register
from sparsebert.lottery.methods.from_ticket import FromTicket
from sparsebert.pruning import Within, random_like, reinitialise_, shuffle_weights_
from sparsebert.tickets.ticket import Ticket


@register("random-layerwise")
@dataclass(frozen=True)
class RandomLayerwise(FromTicket):
    """Layerwise random pruning (Frankle and Carbin 2019): keeps as many weights of each matrix as the user's
    ticket, at random positions."""

    def derive_ticket(self, ticket: Ticket, model: nn.Module, seed: int) -> Ticket:
        return random_like(ticket, seed, model)


@register("random-reinit")
@dataclass(frozen=True)
class RandomReinit(FromTicket):
    """The user's ticket with all weights, including embeddings, randomly reinitialised: f(x; m * theta_0')
    in table 2 of Chen et al. 2020."""

    def initialise_(self, model: nn.Module, seed: int) -> None:
        reinitialise_(model, seed)


@register("shuffled")
@dataclass(frozen=True)
class ShuffledWeights(FromTicket):
    """The user's ticket with the pre-trained weights shuffled: f(x; m * theta_0'') of Chen et al. 2020.

    Attributes:
        within: "matrix" permutes the entries of each matrix; "layers" exchanges whole layers, as published.
    """

    within: Within = field(
        default=Within.MATRIX,
        metadata={
            "help": "objects to shuffle: matrix (the weights of each matrix) or layers (whole layers)",
            "flag": "--shuffle-within",
        },
    )

    def initialise_(self, model: nn.Module, seed: int) -> None:
        shuffle_weights_(model, seed, self.within)
