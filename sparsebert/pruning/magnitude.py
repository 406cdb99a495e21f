"""Magnitude pruning: the largest weights stay."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from sparsebert.pruning.registry import Subject, register


@register("magnitude")
@dataclass(frozen=True)
class Magnitude:
    """Score abs(w), as in Chen et al. 2020, "The Lottery Ticket Hypothesis for Pre-trained BERT Networks"."""

    name: ClassVar[str]

    def scores(self, subject: Subject) -> dict[str, Tensor]:
        return {key: weight.abs() for key, weight in subject.weights.items()}
