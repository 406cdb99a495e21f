"""The best values of the weights that a mask keeps: least squares on the outputs, row by row."""

from __future__ import annotations

import torch
from torch import Tensor


def solve_kept(weight: Tensor, hessian: Tensor, mask: Tensor) -> Tensor:
    """Return the weights w' with support K that minimise (w - w') H (w - w')^T, exactly.

    w'_K = w_K + [H_KK]^-1 H_KP w_P for the pruned weights P of a row, by Cholesky: a system of the size of K
    for each row, or for all rows with the same mask together.

    Args:
        weight: W, float64 [out, in].
        hessian: H, float64 [in, in], positive definite.
        mask: Weights to keep, bool [out, in].
    """
    solved = torch.zeros_like(weight)
    patterns, members = mask.unique(dim=0, return_inverse=True)
    for number, kept in enumerate(patterns):
        if not kept.any():
            continue
        rows = (members == number).nonzero().flatten()
        lower = torch.linalg.cholesky(hessian[kept][:, kept])
        wanted = weight[rows] @ hessian[:, kept]
        solved[rows[:, None], kept.nonzero().flatten()] = torch.cholesky_solve(wanted.t(), lower).t()
    return solved
