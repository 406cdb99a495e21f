"""SNIP: before any training, keep the weights whose removal would change the loss most (first order)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from sparsebert.pruning.registry import ScoringContext, register


@register("snip")
@dataclass(frozen=True)
class Snip:
    """Connection sensitivity of Lee et al. 2019, "SNIP: Single-shot Network Pruning Based on Connection
    Sensitivity", equations 3 to 5: score abs(sum over batches of dL/dW * W).

    Unlike in the paper, weights are pre-trained and not initialised for the purpose. The gradients of all
    batches are summed before the absolute value is taken. Dropout is off, and the weights of the task's head
    are not pruned. A new head makes single gradients noisy: use at least 8 batches. The paper's division by
    the sum of all scores does not change the ranking and is omitted.

    Attributes:
        least_density: Warn of layer collapse if a matrix keeps a smaller share than this.
    """

    name: ClassVar[str]
    least_density: float = 0.01

    def scores(self, context: ScoringContext) -> dict[str, Tensor]:
        gradients = context.gradients()
        return {key: (gradients[key] * weight).abs() for key, weight in context.weights.items()}
