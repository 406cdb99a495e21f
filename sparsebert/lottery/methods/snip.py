"""SNIP before any training, alone or followed by iterative magnitude pruning."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

from sparsebert.lottery.method import NeedsBatches, Round, Source, register
from sparsebert.pruning import Share, Snip, levels
from sparsebert.pruning.sparsity_schedule import exact, require_share


@register("snip")
@dataclass(frozen=True)
class SnipOnce(NeedsBatches):
    """Prune the pre-trained weights once by connection sensitivity, then train: Lee et al. 2019, algorithm 1.

    ``batches``: how many training batches the gradients are summed over; the paper takes one, but a fresh
    head on a pre-trained model makes single batches noisy.
    """

    batches: int = 8

    def rounds(self, sparsity: Fraction) -> tuple[Round, ...]:
        return (Round(Source.START, sparsity, Snip()),)


@register("snip-imp")
@dataclass(frozen=True)
class SnipThenMagnitude(SnipOnce):
    """SNIP to a first sparsity, then short rounds of iterative magnitude pruning to the full one.

    No paper defines the combination; a first mask of 50 % and rounds of 10 % of the original weights are the
    usual suggestion. ``first``: SNIP's share, less if the full sparsity is.
    """

    first: float = 0.5
    step: float = 0.1
    share: Share = Share.ORIGINAL

    def rounds(self, sparsity: Fraction) -> tuple[Round, ...]:
        begin = min(exact("first", self.first), sparsity)
        require_share(self, "first")
        rest = levels(sparsity, self.step, self.share, start=begin)
        return (Round(Source.START, begin, Snip()), *(Round(Source.TRAINED, level) for level in rest))
