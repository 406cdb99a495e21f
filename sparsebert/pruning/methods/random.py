"""Random pruning: the baseline for every other method."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from sparsebert.pruning.registry import ScoringContext, register


@register("random")
@dataclass(frozen=True)
class Random:
    """Draw one uniform float32 score for each unit, matrix by matrix in model order, from the context's seed.

    Scores are drawn for units, not for weights: the mean over a large block would hardly ever reach the top.
    """

    name: ClassVar[str]
    scores_biases: ClassVar[bool] = True

    def scores(self, context: ScoringContext) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(context.seed)
        return {key: torch.rand(units, generator=generator) for key, units in context.units.items()}
