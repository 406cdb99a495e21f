"""Training of an existing ticket."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import ClassVar

from sparsebert.lottery.method import LotteryMethod, Round, Source, register


@register("ticket")
@dataclass(frozen=True)
class FromTicket(LotteryMethod):
    """Training of the user's ticket from the pre-trained weights, on any task (transfer in Chen et al. 2020,
    section 4)."""

    needs_ticket: ClassVar[bool] = True

    def rounds(self, sparsity: Fraction) -> tuple[Round, ...]:
        return (Round(Source.USER, sparsity),)
