"""The dense model, trained like every ticket: what they are measured against."""

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
            raise ValueError(f"a dense model has sparsity 0, not {float(sparsity):g}")
        return (Round(Source.DENSE),)
