"""Settings of healing."""

from __future__ import annotations

import math
from dataclasses import dataclass

from sparsebert.healing.targets import POOLINGS
from sparsebert_kernels.errors import unknown

# Tokens of a text, where neither the user nor the model names another limit.
MAX_LENGTH = 128
PRECISIONS = ("auto", "bf16", "fp32")


@dataclass(frozen=True)
class HealingSettings:
    """Settings of :func:`sparsebert.heal_`.

    Attributes:
        minutes: Wall time to fill, evaluation included.
        steps: Optimizer steps, instead of minutes: the same steps give the same weights on one machine.
        learning_rate: Peak learning rate of Adam; None tries several for a few percent of the budget.
        tokens: Tokens of a step.
        max_length: Tokens at which a text is cut; None for those of the model's training, or 128 if it does
            not record them, and in any case the model's positions at most.
        embeddings: Also train the embeddings.
        pooling: How sentence embeddings are made of hidden states: "mean" or "cls".
        precision: Precision of matrix products in training: "bf16", "fp32", or "auto" for bf16 where the
            machine has instructions for it. Weights and all else are fp32.
        cache: Bytes for the dense model's outputs, which are computed once per text as far as they fit.
        seed: Seed of the split of the texts and of their order.

    Raises:
        ValueError: A value is out of range.
    """

    minutes: float = 10.0
    steps: int | None = None
    learning_rate: float | None = None
    tokens: int = 1024
    max_length: int | None = None
    embeddings: bool = True
    pooling: str = "mean"
    precision: str = "auto"
    cache: int = 2**30
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.minutes < math.inf:
            raise ValueError(f"minutes must be a positive number, got {self.minutes:g}")
        for name, least in (("steps", 1), ("tokens", 1), ("max_length", 3), ("cache", 0), ("seed", 0)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise ValueError(f"{name} must be at least {least}, got {value}")
        if self.learning_rate is not None and not 0 < self.learning_rate < math.inf:
            raise ValueError(f"learning_rate must be a positive number, got {self.learning_rate:g}")
        if self.pooling not in POOLINGS:
            raise unknown("pooling", self.pooling, POOLINGS)
        if self.precision not in PRECISIONS:
            raise unknown("precision", self.precision, PRECISIONS)
