"""SparseGPT: prune columns from left to right, and let those at the right make up for the loss."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from sparsebert.one_shot.layer_problem import LAYER_METHODS, LayerProblem, PrunedMatrix, Target
from sparsebert.pruning.registry import register


@register("sparsegpt", LAYER_METHODS)
@dataclass(frozen=True)
class SparseGPT:
    """Frantar and Alistarh 2023, "SparseGPT: Massive Language Models Can Be Accurately Pruned in One-Shot".

    Algorithm 1: with H^-1 = U^T U, weights of a block of columns are chosen by w_ij^2 / U_jj^2 when the sweep
    reaches the block, and what pruning column j loses, (w_j - w'_j) / U_jj * U[j, j:], is subtracted from the
    columns at its right. Units of several weights are chosen by the sum over their weights: the inverse
    Hessian is the same for all rows. Rows and panels are chosen before the sweep.

    Attributes:
        damping: Share of the Hessian's mean diagonal that is added to its diagonal.
        columns: Columns of a block, which all keep the same share of weights.
    """

    name: ClassVar[str]
    compensates: ClassVar[bool] = True
    damping: float = 0.01
    columns: int = 128

    def prune_layer(self, problem: LayerProblem, target: Target) -> PrunedMatrix:
        """Sweep the matrix; see :class:`~sparsebert.one_shot.LayerMethod`."""
        factor = problem.inverse_factor(self.damping)
        chosen = target.mask
        if chosen is None and target.spans_columns:
            chosen = target.choose((problem.weight / factor.diagonal()) ** 2)
        weight = problem.weight.clone()
        mask = torch.ones_like(weight, dtype=torch.bool)
        for begin, end in target.column_blocks(self.columns):
            block, upper = weight[:, begin:end], factor[begin:end, begin:end]
            if chosen is None:
                mask[:, begin:end] = target.of_columns(begin, end).choose((block / upper.diagonal()) ** 2)
            else:
                mask[:, begin:end] = chosen[:, begin:end]
            errors = sweep(block, mask[:, begin:end], upper)
            weight[:, end:] -= errors @ factor[begin:end, end:]
        return PrunedMatrix(weight, mask)


def sweep(block: Tensor, mask: Tensor, factor: Tensor) -> Tensor:
    """Prune a block of columns, one after the other, and compensate inside the block, in place.

    Args:
        block: float64 [out, columns], overwritten.
        mask: Weights to keep, bool [out, columns].
        factor: The block of U, upper triangular, float64 [columns, columns].

    Returns:
        The loss of each weight divided by U_jj, float64 [out, columns]: 0 where weights stay.
    """
    # Rows of the transpose are contiguous: a column is read and written in one piece.
    columns = block.t().contiguous()
    pruned = ~mask.t()
    errors = torch.zeros_like(columns)
    for j in range(len(columns)):
        errors[j] = columns[j].where(pruned[j], 0.0) / factor[j, j]
        columns[j + 1 :].addr_(factor[j, j + 1 :], errors[j], alpha=-1)
        columns[j].masked_fill_(pruned[j], 0)
    block.copy_(columns.t())
    return errors.t()
