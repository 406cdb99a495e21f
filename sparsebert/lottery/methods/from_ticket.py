"""Training a ticket that is there already, and the baselines that question what it is worth."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import ClassVar

from torch import nn

from sparsebert.lottery.method import LotteryMethod, Round, Source, register
from sparsebert.pruning import Within, random_like, reinitialise_, shuffle_weights_
from sparsebert.tickets.ticket import Ticket


@register("ticket")
@dataclass(frozen=True)
class GivenTicket(LotteryMethod):
    """Train the ticket from the pre-trained weights, on whatever task: the transfer of Chen et al. 2020,
    section 4."""

    needs_ticket: ClassVar[bool] = True

    def rounds(self, sparsity: Fraction) -> tuple[Round, ...]:
        return (Round(Source.USER, sparsity),)


@register("random-layerwise")
@dataclass(frozen=True)
class RandomLayerwise(GivenTicket):
    """As many weights in each matrix as the ticket keeps there, at random places: the layerwise random
    pruning of Frankle and Carbin 2019."""

    def given(self, ticket: Ticket, model: nn.Module, seed: int) -> Ticket:
        return random_like(ticket, seed, model)


@register("random-reinit")
@dataclass(frozen=True)
class RandomReinit(GivenTicket):
    """The ticket's places with every weight drawn anew, embeddings too: f(x; m * theta_0') in table 2 of
    Chen et al. 2020."""

    def begin_(self, model: nn.Module, seed: int) -> None:
        reinitialise_(model, seed)


@register("shuffled")
@dataclass(frozen=True)
class ShuffledWeights(GivenTicket):
    """The ticket's places with the pre-trained weights shuffled: f(x; m * theta_0'') of Chen et al. 2020.

    ``within``: "matrix" permutes the entries of each matrix, "layers" exchanges whole layers as their code
    does.
    """

    within: Within = Within.MATRIX

    def begin_(self, model: nn.Module, seed: int) -> None:
        shuffle_weights_(model, seed, self.within)
