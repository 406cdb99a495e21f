"""SNIP before training, alone (snip) or followed by iterative magnitude pruning (snip-imp)."""

from __future__ import annotations

from dataclasses import dataclass, field
from fractions import Fraction

from sparsebert.lottery.method import NeedsBatches, Round, Source, register
from sparsebert.lottery.option_help import BATCHES, SHARE, STEP
from sparsebert.pruning import Share, Snip, levels
from sparsebert.pruning.sparsity_schedule import exact, require_share


@register("snip")
@dataclass(frozen=True)
class SnipOnce(NeedsBatches):
    """SNIP (Lee et al. 2019, algorithm 1): prune the pre-trained weights once by connection sensitivity, then
    train.

    Attributes:
        batches: Training batches whose gradients are summed. The paper takes one, but the fresh head of a
            pre-trained model makes single batches noisy.
    """

    batches: int = field(default=8, metadata=BATCHES)

    def rounds(self, sparsity: Fraction) -> tuple[Round, ...]:
        return (Round(Source.START, sparsity, Snip()),)


@register("snip-imp")
@dataclass(frozen=True)
class SnipThenMagnitude(SnipOnce):
    """SNIP to a first sparsity, then rounds of iterative magnitude pruning to the full sparsity.

    The combination comes from no paper. The usual suggestion is a first mask of 50 % and rounds of 10 % of
    the original weights.

    Attributes:
        first: Sparsity of the first mask; the sparsity of the run is its upper limit.
        step: Share of the weights that a later round prunes.
        share: Whether ``step`` counts original or remaining weights.
    """

    first: float = field(
        default=0.5,
        metadata={"help": "sparsity that SNIP prunes to before the first round", "flag": "--first-sparsity"},
    )
    step: float = field(default=0.1, metadata=STEP)
    share: Share = field(default=Share.ORIGINAL, metadata=SHARE)

    def rounds(self, sparsity: Fraction) -> tuple[Round, ...]:
        first = min(exact("first", self.first), sparsity)
        require_share(self, "first")
        rest = levels(sparsity, self.step, self.share, start=first)
        return (Round(Source.START, first, Snip()), *(Round(Source.TRAINED, level) for level in rest))
