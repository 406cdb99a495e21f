"""One-shot magnitude pruning."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from fractions import Fraction

from sparsebert.lottery.method import LotteryMethod, Round, Source, register


class Of(StrEnum):
    """Whose magnitudes decide: the weights the run begins with, or those after a round of dense training."""

    PRETRAINED = "pretrained"
    TRAINED = "trained"


@register("one-shot")
@dataclass(frozen=True)
class OneShot(LotteryMethod):
    """Prune once to the full sparsity, then train.

    The pre-trained weights decide by default, as in ``oneshot.py`` of Chen et al. 2020 (section 5); with
    ``of="trained"`` a dense round comes first, as in Frankle and Carbin 2019, appendix B.
    """

    of: Of = Of.PRETRAINED

    def rounds(self, sparsity: Fraction) -> tuple[Round, ...]:
        if self.of is Of.PRETRAINED:
            return (Round(Source.START, sparsity),)
        return (Round(Source.DENSE), Round(Source.TRAINED, sparsity))
