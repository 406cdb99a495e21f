"""Baselines of any ticket: its sparsities at random positions, and its positions with other weights."""

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
    """As many weights in each matrix as the user's ticket keeps, at random positions: the layerwise random
    pruning of Frankle and Carbin 2019."""

    def derive_ticket(self, ticket: Ticket, model: nn.Module, seed: int) -> Ticket:
        return random_like(ticket, seed, model)


@register("random-reinit")
@dataclass(frozen=True)
class RandomReinit(FromTicket):
    """The user's ticket with all weights initialised anew, embeddings too: f(x; m * theta_0') in table 2 of
    Chen et al. 2020."""

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
            "help": "what to shuffle: the weights of each matrix, or whole layers",
            "flag": "--shuffle-within",
        },
    )

    def initialise_(self, model: nn.Module, seed: int) -> None:
        shuffle_weights_(model, seed, self.within)
