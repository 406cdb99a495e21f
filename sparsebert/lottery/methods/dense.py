"""The dense model, trained in the same way as the tickets: the baseline of all tickets."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

from sparsebert.lottery.method import LotteryMethod, Round, Source, register


@register("dense")
@dataclass(frozen=True)
class Dense(LotteryMethod):
    """One round that keeps all weights. Raises ValueError for a sparsity other than 0."""

    def rounds(self, sparsity: Fraction) -> tuple[Round, ...]:
        if sparsity:
            raise ValueError(
                f"method {self.name} does not prune: sparsity must be 0, got {float(sparsity):g}"
            )
        return (Round(Source.DENSE),)
