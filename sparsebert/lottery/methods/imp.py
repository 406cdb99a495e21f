"""Iterative magnitude pruning, with any rewinding and without."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

from sparsebert.lottery.method import Head, LotteryMethod, Rewind, Round, Source, register
from sparsebert.pruning import Share, levels


@register("imp")
@dataclass(frozen=True)
class IterativeMagnitude(LotteryMethod):
    """Train, prune the smallest weights, rewind, repeat: Chen et al. 2020, "The Lottery Ticket Hypothesis for
    Pre-trained BERT Networks", algorithm 1; after Frankle and Carbin 2019.

    The first round trains the dense model, so a run to 70 % in tenths has 8 rounds. The defaults are those
    of Chen et al.: a tenth of the original weights a round, back to the pre-trained weights, and a head that
    goes on training, since their code rewinds the base model alone (``head="rewind"`` makes the rounds
    comparable). Their learning-rate schedule spans 30 epochs of which a round trains 3
    (``schedule_rounds=10``); the paper and the default here let it span one round.

    With ``share="remaining", step=0.2, rewind="step"`` this is Frankle et al. 2020, "Linear Mode
    Connectivity and the Lottery Ticket Hypothesis"; with ``rewind="learning-rate"`` Renda et al. 2020,
    "Comparing Rewinding and Fine-tuning in Neural Network Pruning".
    """

    head: Head = Head.KEEP
    step: float = 0.1
    share: Share = Share.ORIGINAL

    def rounds(self, sparsity: Fraction) -> tuple[Round, ...]:
        path = levels(sparsity, self.step, self.share)
        return (Round(Source.DENSE), *(Round(Source.TRAINED, level) for level in path))


@register("standard")
@dataclass(frozen=True)
class StandardPruning(IterativeMagnitude):
    """Iterative magnitude pruning without rewinding: train, prune, train on (Han et al. 2015; "standard
    pruning" in Chen et al. 2020). One learning-rate schedule spans all rounds, and the optimizer goes on.
    """

    rewind: Rewind = Rewind.NONE
