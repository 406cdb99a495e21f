"""CAP on heads and neurons."""

from __future__ import annotations

from dataclasses import dataclass, field
from fractions import Fraction
from typing import ClassVar

from sparsebert.lottery.contrastive_method import INSTANCE_WEIGHT, LABEL_WEIGHT, ContrastiveMethod
from sparsebert.lottery.method import Head, NeedsBatches, Rewind, Round, Source, register
from sparsebert.lottery.option_help import HEAD, REWIND, STEP
from sparsebert.pruning import HeadImportance, Share, levels
from sparsebert.training.distillation import Distillation


@register("cap-structured")
@dataclass(frozen=True)
class CapStructured(ContrastiveMethod, NeedsBatches):
    """CAP (Xu et al. 2022) on heads and neurons.

    Each stage prunes the least important heads and neurons, the same share of both, and trains the rest
    further with a new optimizer and schedule. The first stage prunes the pre-trained model. Each layer keeps
    at least one head. :class:`sparsebert.pruning.HeadImportance` computes the importance on ``batches``
    batches of the training data, from the loss of their labels. The defaults are those of the published
    script for structured pruning (``StructuredPruning/run_glue.sh``): weights of 0.3 and 3, a teacher with
    the weight 0.9 and the temperature 1, and a warm-up in the first tenth of each stage. See
    :class:`sparsebert.lottery.contrastive_method.ContrastiveMethod`.

    Attributes:
        step: Share of the original heads and neurons that a stage prunes.
    """

    distillation: ClassVar[Distillation] = Distillation(0.9, 1.0)
    warmup_ratio: ClassVar[float | None] = 0.1

    instance_weight: float = field(default=0.3, metadata=INSTANCE_WEIGHT)
    label_weight: float = field(default=3.0, metadata=LABEL_WEIGHT)
    rewind: Rewind = field(default=Rewind.LEARNING_RATE, metadata=REWIND)
    head: Head = field(default=Head.KEEP, metadata=HEAD)
    step: float = field(default=0.1, metadata=STEP)

    def __post_init__(self) -> None:
        super().__post_init__()
        if (self.rewind, self.head) != (Rewind.LEARNING_RATE, Head.KEEP):
            raise ValueError(f"method {self.name} keeps training from stage to stage: omit rewind and head")

    @property
    def granularity(self) -> str:
        return "head+neuron"

    @property
    def scope(self) -> str:
        return "type"

    def require_units(self, granularity: str, scope: str) -> None:
        if granularity != "head+neuron":
            raise ValueError(f"granularity of method {self.name} must be head+neuron, got {granularity!r}")

    def rounds(self, sparsity: Fraction) -> tuple[Round, ...]:
        scores = HeadImportance(keep_a_head=True)
        stages = levels(sparsity, self.step, Share.ORIGINAL)
        if not stages:
            raise ValueError(f"method {self.name} prunes in stages: sparsity must be above 0, got 0")
        return tuple(
            Round(Source.TRAINED if number else Source.START, level, scores)
            for number, level in enumerate(stages)
        )
