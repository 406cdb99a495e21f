"""SNIP: the weights stay whose removal would change the loss most, to first order, before any training."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from sparsebert.pruning.registry import Subject, register


@register("snip")
@dataclass(frozen=True)
class Snip:
    """Connection sensitivity of Lee et al. 2019, "SNIP: Single-shot Network Pruning Based on Connection
    Sensitivity", equations 3 to 5: score abs(sum over batches of dL/dW * W).

    For pre-trained weights, so unlike the paper nothing is initialised anew. The gradients of all batches are
    summed before the absolute value is taken, with dropout off; the head's weights are no candidates. A fresh
    head makes single gradients noisy: give at least 8 batches. The paper's division by the sum of all scores
    changes no ranking and is left out.

    ``least_density``: a matrix that keeps a smaller share than this is warned of (layer collapse).
    """

    name: ClassVar[str]
    least_density: float = 0.01

    def scores(self, subject: Subject) -> dict[str, Tensor]:
        gradients = subject.gradients()
        return {key: (gradients[key] * weight).abs() for key, weight in subject.weights.items()}
