"""One-shot magnitude pruning."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from fractions import Fraction

from sparsebert.lottery.method import LotteryMethod, Round, Source, register


class Of(StrEnum):
    """The weights whose magnitudes are ranked: the initial weights, or the weights after a dense round."""

    PRETRAINED = "pretrained"
    TRAINED = "trained"


@register("one-shot")
@dataclass(frozen=True)
class OneShot(LotteryMethod):
    """One-shot magnitude pruning: prune once to the full sparsity, then train.

    By default the pre-trained weights are ranked, as in ``oneshot.py`` of Chen et al. 2020 (section 5). With
    ``of="trained"`` a dense round comes first, as in Frankle and Carbin 2019, appendix B.
    """

    of: Of = field(
        default=Of.PRETRAINED,
        metadata={
            "help": "weights whose magnitudes are ranked: pretrained, or trained (after a dense round)",
            "flag": "--magnitudes-of",
        },
    )

    def rounds(self, sparsity: Fraction) -> tuple[Round, ...]:
        if self.of is Of.PRETRAINED:
            return (Round(Source.START, sparsity),)
        return (Round(Source.DENSE), Round(Source.TRAINED, sparsity))
