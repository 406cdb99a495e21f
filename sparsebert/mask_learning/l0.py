"""L0 regularisation: weights times random gates that a penalty closes."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from sparsebert.mask_learning.rule import (
    Gated,
    Goal,
    PrunableUnits,
    mean_sigmoid,
    require_not_negative,
    rounded,
)

# Temperature of the concrete distribution, and the interval to which it is stretched.
_BETA, _LOW, _HIGH = 2 / 3, -0.1, 1.1
_MINIMUM_UNIFORM = 1e-4


@dataclass(frozen=True)
class HardConcreteRule(Gated):
    """L0 regularisation (Louizos et al. 2018, "Learning Sparse Neural Networks through L0 Regularization",
    equations 10 to 13), with the constants of the comparison in Sanh et al. 2020.

    Training replaces W by W' = W * z with z = clamp(1.2 * s - 0.1, 0, 1),
    s = sigmoid((log u - log(1 - u) + S) / beta) and beta = 2/3. The noise u is uniform in [1e-4, 1 - 1e-4]
    and sampled once per optimizer step. The trained model has s = sigmoid(S): its gates are real numbers and
    are multiplied into its weights. The ticket keeps the weights whose gate is not 0 (S > ln(1/11)).

    The penalty ``regularisation`` * mean over matrices of mean(sigmoid(S - beta * ln(0.1 / 1.1))) is added to
    the loss and decides how much is pruned. The sigmoid is the probability that a gate is open. S starts at
    2.197, where sigmoid(S) = 0.9. In panels, rounding closes open gates, and keeps closed ones with zeros.

    Attributes:
        regularisation: Weight of the penalty.
    """

    first_score: ClassVar[float] = 2.197

    scores_learning_rate: float = 1e-1
    regularisation: float = 125.0

    def __post_init__(self) -> None:
        super().__post_init__()
        require_not_negative(self, "regularisation")

    def gates(self, scores: Tensor, uniform: Tensor | None) -> Tensor:
        if uniform is None:
            return _stretched(torch.sigmoid(scores))
        uniform = uniform.clamp(_MINIMUM_UNIFORM, 1 - _MINIMUM_UNIFORM)
        return _stretched(torch.sigmoid((uniform.log() - (1 - uniform).log() + scores) / _BETA))

    def masks(
        self, scores: Mapping[str, Tensor], units: PrunableUnits, goal: Goal, step: int
    ) -> dict[str, Tensor]:
        masks = {}
        for group in units.groups:
            gates = self.gates(scores[group.name].detach(), None)
            if gates.isnan().any():
                raise ValueError("a score is NaN: training diverged; lower the learning rates")
            masks[group.name] = rounded(scores[group.name], group, gates > 0)
        return masks

    def penalty(self, scores: Mapping[str, Tensor], goal: Goal, step: int) -> Tensor | None:
        shift = -_BETA * math.log(-_LOW / _HIGH)
        return self.regularisation * mean_sigmoid(list(scores.values()), shift)


def _stretched(probabilities: Tensor) -> Tensor:
    return (probabilities * (_HIGH - _LOW) + _LOW).clamp(0, 1)
