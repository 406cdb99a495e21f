"""Triangular matrices: nearly all of the work as products, which run faster than substitution."""

from __future__ import annotations

import torch
from torch import Tensor

# Rows of a triangular matrix that is inverted by substitution, and of the blocks of a solve.
_SUBSTITUTED, _BLOCK = 128, 256


def inverse_of_lower(lower: Tensor) -> Tensor:
    """Return the inverse of a lower triangular matrix [n, n], by halves."""
    size = len(lower)
    if size <= _SUBSTITUTED:
        return torch.linalg.solve_triangular(lower, torch.eye(size, dtype=lower.dtype), upper=False)
    half = size // 2
    inverse = torch.zeros_like(lower)
    inverse[:half, :half] = inverse_of_lower(lower[:half, :half])
    inverse[half:, half:] = inverse_of_lower(lower[half:, half:])
    inverse[half:, :half] = -(inverse[half:, half:] @ lower[half:, :half]) @ inverse[:half, :half]
    return inverse


class BlockedFactor:
    """A Cholesky factor with the inverses of the blocks on its diagonal.

    Args:
        lower: L, lower triangular [n, n].
    """

    def __init__(self, lower: Tensor) -> None:
        self._lower = lower
        ranges = [(begin, min(begin + _BLOCK, len(lower))) for begin in range(0, len(lower), _BLOCK)]
        self._blocks = [(begin, end, inverse_of_lower(lower[begin:end, begin:end])) for begin, end in ranges]

    def solve_rows(self, rows: Tensor) -> Tensor:
        """Return B with B L L^T = ``rows`` [rows, n]."""
        solution = rows.clone()
        for begin, end, inverse in self._blocks:
            block = solution[:, begin:end]
            block.addmm_(solution[:, :begin], self._lower[begin:end, :begin].t(), alpha=-1)
            block.copy_(block @ inverse.t())
        for begin, end, inverse in reversed(self._blocks):
            block = solution[:, begin:end]
            block.addmm_(solution[:, end:], self._lower[end:, begin:end], alpha=-1)
            block.copy_(block @ inverse)
        return solution
