"""Wanda: magnitude times the norm of the input."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from sparsebert.one_shot.layer_problem import LAYER_METHODS, LayerProblem, PrunedMatrix, Target
from sparsebert.pruning.registry import register


@register("wanda", LAYER_METHODS)
@dataclass(frozen=True)
class Wanda:
    """Score abs(w_ij) * ||x_j||, as in Sun et al. 2024, "A Simple and Effective Pruning Approach for LLMs".

    Single weights compete within their row, as published; other units within their matrix, by the mean score
    of their weights. Weights that stay do not change.
    """

    name: ClassVar[str]
    compensates: ClassVar[bool] = False

    def prune_layer(self, problem: LayerProblem, target: Target) -> PrunedMatrix:
        """Keep the weights with the highest scores; see :class:`~sparsebert.one_shot.LayerMethod`."""
        scores = problem.weight.abs() * problem.hessian.diagonal().sqrt()
        mask = _best_of_rows(scores, target) if target.single_weights else target.choose(scores)
        return PrunedMatrix(problem.weight.where(mask, 0.0), mask)


def _best_of_rows(scores: Tensor, target: Target) -> Tensor:
    """Return the mask of the highest scores of each row; of equal scores the first stay."""
    kept = round(target.density * scores.shape[1])
    order = scores.argsort(dim=1, descending=True, stable=True)
    return torch.zeros_like(scores, dtype=torch.bool).scatter_(1, order[:, :kept], True)
