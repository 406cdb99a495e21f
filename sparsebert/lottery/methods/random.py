"""Random pruning: the baseline of all other methods."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

from sparsebert.lottery.method import LotteryMethod, Round, Source, register
from sparsebert.pruning import Random


@register("random")
@dataclass(frozen=True)
class RandomPruning(LotteryMethod):
    """Random pruning: f(x; m_R * theta_0) in table 2 of Chen et al. 2020.

    Prunes uniformly at random over all matrices, then trains the remaining pre-trained weights.
    """

    def rounds(self, sparsity: Fraction) -> tuple[Round, ...]:
        return (Round(Source.START, sparsity, Random()),)
