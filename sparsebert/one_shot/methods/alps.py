"""ALPS: the support by ADMM on the layer's outputs, then its weights by conjugate gradients."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from sparsebert.one_shot.conjugate_gradients import conjugate_gradients
from sparsebert.one_shot.layer_problem import (
    LAYER_METHODS,
    LayerProblem,
    PrunedMatrix,
    SingularHessianError,
    Target,
)
from sparsebert.one_shot.triangular import BlockedFactor
from sparsebert.pruning.registry import register

# rho grows by these factors where more than these shares of the kept weights changed places.
_GROWTH = ((0.1, 1.3), (0.005, 1.2), (0.0, 1.1))
_LARGEST_RHO = 1e6
_DTYPES = {"float32": torch.float32, "float64": torch.float64}
# Conjugate gradients on a mask end at this residual, as a share of H W.
_TOLERANCE = 1e-4
# Columns for each row of a matrix beyond which triangular solves take less time than the inverse.
_ROWS = 3


@register("alps", LAYER_METHODS)
@dataclass(frozen=True)
class Alps:
    """Meng et al. 2024, "ALPS: Improved Optimization for Highly Sparse One-Shot Pruning", algorithm 1.

    With H scaled to a diagonal of 1, ADMM alternates between dense weights
    B = (W H - V + rho D) (H + rho I)^-1, their projection D on the largest units of B + V / rho, and
    V += rho (B - D). rho grows by the change of the support, until there is hardly any. Conjugate gradients
    on the support then approach its least squares; the diagonal, their preconditioner, is 1. The size of a
    unit is the norm of its scaled weights. With a mask, only the conjugate gradients run, until they
    converge.

    The authors' code (github.com/mazumder-lab/ALPS) has the numbers. It inverts H + rho I by an
    eigendecomposition of H; a Cholesky factor for each rho gives the same B in less time.

    Attributes:
        damping: Share of the Hessian's mean diagonal that is added to its diagonal.
        rho: The first rho; as long as the support hardly changes, ADMM begins again with a fifth of it.
        interval: Iterations between two values of rho.
        iterations: Most iterations of ADMM.
        settled: Change of the support, as a share of the kept weights, at which ADMM ends.
        settled_after: Iterations of ADMM before ``settled`` counts.
        gradient_steps: Iterations of conjugate gradients.
        dtype: Precision of the iterations, "float32" or "float64".
    """

    name: ClassVar[str]
    compensates: ClassVar[bool] = True
    damping: float = 0.01
    rho: float = 0.1
    interval: int = 3
    iterations: int = 300
    settled: float = 3e-4
    settled_after: int = 30
    gradient_steps: int = 10
    dtype: str = "float32"

    def __post_init__(self) -> None:
        """Raise ValueError unless the dtype is one of the two."""
        if self.dtype not in _DTYPES:
            raise ValueError(f"dtype of alps must be 'float32' or 'float64', got {self.dtype!r}")

    def prune_layer(self, problem: LayerProblem, target: Target) -> PrunedMatrix:
        """Find the support and its weights; see :class:`~sparsebert.one_shot.LayerMethod`."""
        damped = problem.damped_hessian(self.damping)
        if not (damped.diagonal() > 0).all():
            raise problem.singular(self.damping)
        scale = damped.diagonal().sqrt()
        hessian = damped.div_(scale).div_(scale[:, None]).to(_DTYPES[self.dtype])
        del damped
        weight = (problem.weight * scale).to(hessian.dtype)
        goal = weight @ hessian
        if target.mask is not None:
            mask, start, steps, tolerance = target.mask, weight, self.iterations, _TOLERANCE
        else:
            start = self._admm(weight, hessian, goal, target)
            mask, steps, tolerance = target.choose(start.square()), self.gradient_steps, 0.0
        solved = conjugate_gradients(hessian, goal, mask, start.where(mask, 0.0), steps, tolerance)
        return PrunedMatrix((solved.double() / scale).where(mask, 0.0), mask)

    def _admm(self, weight: Tensor, hessian: Tensor, goal: Tensor, target: Target) -> Tensor:
        """Return the dense weights B on which ADMM ends, [out, in]."""
        rho, growing = self.rho, False
        first = support = target.choose(weight.square())
        size = max(int(first.count_nonzero()), 1)
        dense, sparse, dual = weight, weight.where(first, 0.0), torch.zeros_like(weight)
        solve = _solver(hessian, rho, target)
        for iteration in range(1, self.iterations + 1):
            dense = solve((goal - dual).add_(sparse, alpha=rho))
            dual.add_(dense, alpha=rho)
            sparse = dual / rho
            mask = target.choose(sparse.square())
            sparse = sparse.where(mask, 0.0)
            dual.masked_fill_(mask, 0)  # V + rho (B - D) is V + rho B where D is 0, and 0 elsewhere
            if iteration % self.interval:
                continue
            changed = int((mask != support).count_nonzero())
            support = mask
            if growing and not changed:
                break
            if changed > _GROWTH[1][0] * size or (growing and changed):
                growing = True
                rho *= next(factor for share, factor in _GROWTH if changed > share * size)
                rho = min(rho, _LARGEST_RHO)
            else:
                rho /= 5
                if changed:
                    dense, sparse, dual = weight, weight.where(first, 0.0), torch.zeros_like(weight)
            if iteration > self.settled_after and changed < self.settled * size:
                break
            solve = _solver(hessian, rho, target)
        return dense


def _solver(hessian: Tensor, rho: float, target: Target) -> Callable[[Tensor], Tensor]:
    """Return the product of rows [out, in] with (H + rho I)^-1.

    With many rows it is worth the time that the inverse takes.

    Raises SingularHessianError if there is no Cholesky factor.
    """
    shifted = hessian.clone()
    shifted.diagonal().add_(rho)
    lower, failed = torch.linalg.cholesky_ex(shifted)
    if failed:
        raise SingularHessianError(
            f"the Hessian of {target.group.name} is singular at rho {rho:g}: pass more texts, a "
            "larger damping, or allow magnitude there"
        )
    rows, columns = target.group.shapes[target.group.name]
    if _ROWS * rows < columns:
        return BlockedFactor(lower).solve_rows
    inverse = torch.cholesky_inverse(lower)
    return lambda products: products @ inverse
