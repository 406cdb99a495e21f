"""SparseGPT: prune columns from left to right, and let those at the right make up for the loss."""

from __future__ import annotations

from dataclasses import dataclass, replace
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
    columns at its right. For n:m, weights are chosen when the sweep reaches their m columns. Units of several
    weights are chosen by the sum over their weights: the inverse Hessian is the same for all rows. Rows and
    panels are chosen before the sweep.

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
        if target.spans_columns:
            target = replace(target, mask=target.choose((problem.weight / factor.diagonal()) ** 2))
        weight = problem.weight.clone()
        mask = torch.ones_like(weight, dtype=torch.bool)
        for begin, end in target.column_blocks(self.columns):
            block = weight[:, begin:end]
            upper = factor[begin:end, begin:end]
            mask[:, begin:end], errors = _choose_and_sweep(block, target.of_columns(begin, end), upper)
            weight[:, end:] -= errors @ factor[begin:end, end:]
        return PrunedMatrix(weight, mask)


def _choose_and_sweep(block: Tensor, target: Target, factor: Tensor) -> tuple[Tensor, Tensor]:
    """Choose the weights of a block of columns when the sweep reaches them, and prune it in place.

    Returns the mask, and the errors as :func:`sweep` does.
    """
    if target.mask is not None or not target.pattern:
        mask = target.choose((block / factor.diagonal()) ** 2)
        return mask, sweep(block, mask, factor)
    mask, errors = torch.empty_like(block, dtype=torch.bool), torch.empty_like(block)
    for begin, end in target.column_blocks(target.pattern[1]):
        part, triangle = block[:, begin:end], factor[begin:end, begin:end]
        mask[:, begin:end] = target.choose((part / triangle.diagonal()) ** 2)
        errors[:, begin:end] = sweep(part, mask[:, begin:end], triangle)
        block[:, end:] -= errors[:, begin:end] @ factor[begin:end, end:]
    return mask, errors


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
    columns, kept = block.t().contiguous(), mask.t().contiguous()
    pruned, errors = (~kept).to(block.dtype), torch.empty_like(columns)
    rows = zip(columns.unbind(), pruned.unbind(), errors.unbind(), factor.unbind(), strict=True)
    for j, (column, loses, error, upper) in enumerate(rows):
        torch.mul(column, loses, out=error).div_(upper[j])
        columns[j + 1 :].addr_(upper[j + 1 :], error, alpha=-1)
    block.copy_(columns.where(kept, 0.0).t())
    return errors.t()
