"""Iterative magnitude pruning, with rewinding (imp) and without (standard)."""

from __future__ import annotations

from dataclasses import dataclass, field
from fractions import Fraction
from typing import ClassVar

from sparsebert.lottery.method import Head, LotteryMethod, Rewind, Round, Source, register
from sparsebert.lottery.option_help import HEAD, REWIND, SHARE, STEP
from sparsebert.pruning import Share, levels


@register("imp")
@dataclass(frozen=True)
class IterativeMagnitude(LotteryMethod):
    """Iterative magnitude pruning (Chen et al. 2020, "The Lottery Ticket Hypothesis for Pre-trained BERT
    Networks", algorithm 1; after Frankle and Carbin 2019): train, prune the smallest weights, rewind, repeat.

    The first round trains the dense model, so a run to 70 % in tenths has 8 rounds. The defaults are those of
    Chen et al.: each round prunes a tenth of the original weights and rewinds to the pre-trained weights. The
    head is not rewound, because their code rewinds only the base model; ``head="rewind"`` makes the rounds
    comparable. In their code the learning-rate schedule spans 30 epochs, of which a round trains 3
    (``schedule_rounds=10``); in the paper, and by default here, it spans one round.

    ``share="remaining", step=0.2, rewind="step"`` gives Frankle et al. 2020, "Linear Mode Connectivity and
    the Lottery Ticket Hypothesis"; ``rewind="learning-rate"`` gives Renda et al. 2020, "Comparing Rewinding
    and Fine-tuning in Neural Network Pruning".

    From a start ticket, the first round trains that ticket instead of the dense model, and rounds at or below
    its sparsity are left out.

    Attributes:
        step: Share of the weights that a round prunes.
        share: Whether ``step`` counts original or remaining weights.
    """

    takes_start_ticket: ClassVar[bool] = True

    head: Head = field(default=Head.KEEP, metadata=HEAD)
    step: float = field(default=0.1, metadata=STEP)
    share: Share = field(default=Share.ORIGINAL, metadata=SHARE)

    def rounds(self, sparsity: Fraction) -> tuple[Round, ...]:
        path = levels(sparsity, self.step, self.share)
        return (Round(Source.DENSE), *(Round(Source.TRAINED, level) for level in path))


@register("standard")
@dataclass(frozen=True)
class StandardPruning(IterativeMagnitude):
    """Iterative magnitude pruning without rewinding (Han et al. 2015; "standard pruning" in
    Chen et al. 2020): train, prune, train on.

    One learning-rate schedule spans all rounds, and the optimizer keeps its state.
    """

    rewind: Rewind = field(default=Rewind.NONE, metadata=REWIND)
