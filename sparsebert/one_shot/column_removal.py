"""Optimal brain surgery on whole columns: remove units of neighbouring columns from a matrix."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sparsebert.one_shot.layer_problem import LayerProblem


@dataclass(frozen=True, eq=False)
class RemainingColumns:
    """A matrix without some of its units, and what is known of the others.

    Attributes:
        units: Indices of the remaining units, int64 [units].
        weight: Their weights, float64 [out, units, width].
        inverse: The inverse of the damped Hessian of their columns, float64 [units * width, units * width].
        loss: tr((W - W') H (W - W')^T) over all columns, H damped: what the removals have cost so far.
    """

    units: Tensor
    weight: Tensor
    inverse: Tensor
    loss: float = 0.0

    @classmethod
    def all_of(cls, problem: LayerProblem, width: int, damping: float) -> RemainingColumns:
        """Return the whole matrix, cut into units of ``width`` columns.

        Weights whose inputs are always 0 count as 0, so that they are removed first.

        Raises SingularHessianError, naming the matrix, if the damped Hessian is not positive definite.
        """
        factor = problem.inverse_factor(damping)
        silent = problem.hessian.diagonal() == 0
        weight = problem.weight.masked_fill(silent, 0).unflatten(1, (-1, width))
        return cls(torch.arange(weight.shape[1]), weight, factor.t() @ factor)

    @property
    def columns(self) -> Tensor:
        """Indices of the remaining columns, int64 [units * width]."""
        width = self.weight.shape[2]
        return (self.units[:, None] * width + torch.arange(width)).flatten()

    def saliency(self) -> Tensor:
        """Return what the removal of each unit costs, float64 [units].

        The sum over the rows of W_S ([H^-1]_SS)^-1 W_S^T.
        """
        count, width = len(self.units), self.weight.shape[2]
        if width == 1:
            return self.weight.square().sum((0, 2)) / self.inverse.diagonal()
        blocks = self.inverse.view(count, width, count, width).diagonal(dim1=0, dim2=2).permute(2, 0, 1)
        by_unit = self.weight.permute(1, 2, 0)
        return (by_unit * torch.linalg.solve(blocks, by_unit)).sum((1, 2))

    def without(self, positions: Tensor) -> RemainingColumns:
        """Remove the units at these positions among the remaining ones, together, and update the others.

        W -= W_S ([H^-1]_SS)^-1 [H^-1]_S:, and H^-1 -= [H^-1]_:S ([H^-1]_SS)^-1 [H^-1]_S:.
        """
        count, width = len(self.units), self.weight.shape[2]
        stays = torch.ones(count, dtype=torch.bool)
        stays[positions] = False
        kept = stays.repeat_interleave(width).nonzero().flatten()
        removed = (~stays).repeat_interleave(width).nonzero().flatten()
        flat = self.weight.flatten(1)
        lost, rows = flat[:, removed], self.inverse[removed]
        block = rows[:, removed]
        share = torch.linalg.solve(block, rows[:, kept])
        weight = flat[:, kept].addmm_(lost, share, alpha=-1)
        inverse = self.inverse[kept][:, kept].addmm_(rows[:, kept].t(), share, alpha=-1)
        cost = float((lost.t() * torch.linalg.solve(block, lost.t())).sum())
        return RemainingColumns(
            self.units[stays], weight.unflatten(1, (-1, width)), inverse, self.loss + cost
        )


def remove_units(
    remaining: RemainingColumns, counts: Sequence[int], at_once: int = 1
) -> Iterator[RemainingColumns]:
    """Remove the unit with the least saliency until no more than each of ``counts`` remain.

    Args:
        remaining: The matrix to start from.
        counts: Numbers of units, descending; the matrix is yielded at each.
        at_once: Units that are removed together before saliencies are computed again.
    """
    for count in counts:
        while (excess := len(remaining.units) - count) > 0:
            order = remaining.saliency().argsort(stable=True)
            remaining = remaining.without(order[: min(at_once, excess)])
        yield remaining
