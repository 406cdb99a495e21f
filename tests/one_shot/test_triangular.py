"""Inverses and solves of triangular matrices, against torch's own."""

from __future__ import annotations

import pytest
import torch

from sparsebert.one_shot.triangular import BlockedFactor, inverse_of_lower


def factor(size):
    mixing = torch.randn(size, size, dtype=torch.float64)
    return torch.linalg.cholesky(mixing @ mixing.t() / size + torch.eye(size, dtype=torch.float64))


@pytest.mark.parametrize("size", [1, 128, 129, 300, 513])
def test_a_matrix_times_its_inverse_is_the_identity(size):
    lower = factor(size)
    inverse = inverse_of_lower(lower)
    torch.testing.assert_close(inverse @ lower, torch.eye(size, dtype=torch.float64), rtol=0, atol=1e-10)
    assert not inverse.triu(1).any()


@pytest.mark.parametrize("size", [1, 255, 256, 257, 600])
def test_rows_are_solved_as_by_substitution(size):
    lower, rows = factor(size), torch.randn(7, size, dtype=torch.float64)
    before = rows.clone()
    expected = torch.cholesky_solve(rows.t(), lower).t()
    torch.testing.assert_close(BlockedFactor(lower).solve_rows(rows), expected, rtol=0, atol=1e-10)
    assert torch.equal(rows, before)
