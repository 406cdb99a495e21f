"""Random pruning: the baseline that every other method must beat."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from sparsebert.pruning.registry import ScoringContext, register


@register("random")
@dataclass(frozen=True)
class Random:
    """One uniform float32 score per unit, drawn matrix by matrix in model order from the context's seed.

    Units and not weights are drawn: the mean over a large block would hardly ever reach the top.
    """

    name: ClassVar[str]
    scores_biases: ClassVar[bool] = True

    def scores(self, context: ScoringContext) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(context.seed)
        return {key: torch.rand(units, generator=generator) for key, units in context.units.items()}
