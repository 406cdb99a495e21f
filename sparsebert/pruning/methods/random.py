"""Random pruning: the baseline that every other method must beat."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from sparsebert.pruning.registry import Subject, register


@register("random")
@dataclass(frozen=True)
class Random:
    """One uniform float32 score per unit, drawn matrix by matrix in model order from the subject's seed.

    Units and not weights are drawn: the mean over a large block would hardly ever reach the top.
    """

    name: ClassVar[str]
    scores_biases: ClassVar[bool] = True

    def scores(self, subject: Subject) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(subject.seed)
        return {key: torch.rand(units, generator=generator) for key, units in subject.units.items()}
