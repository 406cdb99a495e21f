"""Random pruning: what every other method must beat."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

from sparsebert.lottery.method import LotteryMethod, Round, Source, register
from sparsebert.pruning import Random


@register("random")
@dataclass(frozen=True)
class RandomPruning(LotteryMethod):
    """Prune uniformly at random over all matrices, then train the pre-trained weights that are left:
    f(x; m_R * theta_0) in table 2 of Chen et al. 2020."""

    def rounds(self, sparsity: Fraction) -> tuple[Round, ...]:
        return (Round(Source.START, sparsity, Random()),)
