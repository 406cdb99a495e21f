"""Magnitude pruning: keep the weights of largest magnitude."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from sparsebert.pruning.registry import ScoringContext, register


@register("magnitude")
@dataclass(frozen=True)
class Magnitude:
    """Score abs(w), as in Chen et al. 2020, "The Lottery Ticket Hypothesis for Pre-trained BERT Networks".

    Attributes:
        keep_smallest: Score -abs(w): the bad subnetworks of Prasanna et al. 2020, "When BERT Plays the
            Lottery, All Tickets Are Winning".
    """

    name: ClassVar[str]
    scores_biases: ClassVar[bool] = True
    keep_smallest: bool = False

    def scores(self, context: ScoringContext) -> dict[str, Tensor]:
        sign = -1.0 if self.keep_smallest else 1.0
        return {key: weight.abs() * sign for key, weight in context.weights.items()}
