"""L0 regularisation: weights times random gates, which the penalty closes for good."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from sparsebert.mask_learning.rule import Candidates, Gated, Goal, mean_sigmoid, require_not_negative

# The temperature of the concrete distribution, and the ends that it is stretched to.
_BETA, _LOW, _HIGH = 2 / 3, -0.1, 1.1
_LEAST_UNIFORM = 1e-4


@dataclass(frozen=True)
class HardConcreteRule(Gated):
    """L0 regularisation (Louizos et al. 2018, "Learning Sparse Neural Networks through L0 Regularization",
    equations 10 to 13), with the constants of Sanh et al. 2020, who compare with it.

    In training W' = W * z with z = clamp(s * 1.2 - 0.1, 0, 1), s = sigma((log u - log(1 - u) + S) / beta) and
    beta = 2/3; u is uniform in [1e-4, 1 - 1e-4], drawn once an optimizer step. The trained model has s =
    sigma(S): gates that are real numbers, not 0 and 1. They end up in its weights, W * z, and the ticket says
    which of them are not 0 (S > ln(1/11)). The loss gets ``regularisation`` * mean over matrices of the mean
    of sigma(S - beta * ln(0.1/1.1)), the probability that a gate is open. S begins at 2.197, where 9 of 10
    are. How much is pruned follows from the penalty.
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
        uniform = uniform.clamp(_LEAST_UNIFORM, 1 - _LEAST_UNIFORM)
        return _stretched(torch.sigmoid((uniform.log() - (1 - uniform).log() + scores) / _BETA))

    def masks(
        self, scores: Mapping[str, Tensor], candidates: Candidates, goal: Goal, step: int
    ) -> dict[str, Tensor]:
        masks = {}
        for group in candidates.groups:
            gates = self.gates(scores[group.name].detach(), None)
            if gates.isnan().any():
                raise ValueError("a score is NaN")
            masks[group.name] = gates > 0
        return masks

    def penalty(self, scores: Mapping[str, Tensor], goal: Goal, step: int) -> Tensor | None:
        shift = -_BETA * math.log(-_LOW / _HIGH)
        return self.regularisation * mean_sigmoid(list(scores.values()), shift)


def _stretched(shares: Tensor) -> Tensor:
    return (shares * (_HIGH - _LOW) + _LOW).clamp(0, 1)
