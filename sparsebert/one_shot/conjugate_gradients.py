"""Least squares on a support by conjugate gradients, all rows of a matrix at once."""

from __future__ import annotations

import torch
from torch import Tensor


def conjugate_gradients(
    hessian: Tensor, goal: Tensor, mask: Tensor, start: Tensor, steps: int, tolerance: float = 0.0
) -> Tensor:
    """Minimise the error of a matrix's outputs over the weights of its support.

    For each row, the conjugate gradients of Hestenes and Stiefel 1952 for [w H]_K = goal_K, with the gradient
    projected on the support K.

    Args:
        hessian: H [in, in], positive definite; with a diagonal of 1 it needs no preconditioner.
        goal: W H [out, in].
        mask: Weights to keep, bool [out, in].
        start: The first weights [out, in], 0 where the mask prunes.
        steps: Most iterations.
        tolerance: Norm of the residual, as a share of the goal's, at which the iterations end.

    Returns:
        The weights [out, in], 0 where the mask prunes.
    """
    solution = start.clone()
    residual = (goal - solution @ hessian).where(mask, 0.0)
    direction = residual.clone()
    energy = residual.square().sum(1, keepdim=True)
    enough = (tolerance * goal.where(mask, 0.0)).square().sum(1, keepdim=True)
    for _ in range(steps):
        if (energy <= enough).all():
            break
        image = (direction @ hessian).where(mask, 0.0)
        length = _ratio(energy, (direction * image).sum(1, keepdim=True))
        solution += length * direction
        residual -= length * image
        before, energy = energy, residual.square().sum(1, keepdim=True)
        direction = residual + _ratio(energy, before) * direction
    return solution


def _ratio(above: Tensor, below: Tensor) -> Tensor:
    """Return above / below, 0 where a row has converged to exactly 0."""
    return torch.where(below > 0, above / below, 0.0)
