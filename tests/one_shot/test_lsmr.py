"""LSMR against scipy's with the limits of cupyx's, which Kwon et al. ran, and against the exact minimum."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from sparsebert.one_shot.lsmr import lsmr


def system(rows: int, unknowns: int, values: list[float], seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """A matrix with these singular values, over and over, and a target that it does not reach."""
    generator = torch.Generator().manual_seed(seed)
    random = torch.randn(rows, unknowns, generator=generator, dtype=torch.float64)
    u, _, v = torch.linalg.svd(random, full_matrices=False)
    repeated = torch.tensor((values * unknowns)[:unknowns], dtype=torch.float64)
    return u @ torch.diag(repeated) @ v, torch.randn(rows, generator=generator, dtype=torch.float64)


# Few distinct values: where there are many, the last iterations depend on how sums are rounded.
VALUES = ([30.0, 10.0], [9.0, 7.0, 3.0, 0.2], [3e3, 0.5], [2e6, 1e-3])


@pytest.mark.parametrize(("rows", "unknowns"), [(12, 12), (30, 7), (1, 1)])
@pytest.mark.parametrize("values", VALUES, ids=str)
@pytest.mark.parametrize("damping", [0.0, 1.0])
def test_parity_with_scipy(rows: int, unknowns: int, values: list[float], damping: float) -> None:
    linalg = pytest.importorskip("scipy.sparse.linalg")
    matrix, target = system(rows, unknowns, values)
    # The same products on both sides: a condition of 6000 multiplies what sums in another order differ by.
    products = linalg.LinearOperator(
        matrix.shape,
        matvec=lambda x: (matrix @ torch.from_numpy(x)).numpy(),
        rmatvec=lambda y: (matrix.t() @ torch.from_numpy(y)).numpy(),
        dtype=np.float64,
    )
    expected, reason = linalg.lsmr(products, target.numpy(), damp=damping, maxiter=5 * unknowns)[:2]
    x, converged = lsmr(matrix, target, damping)
    np.testing.assert_allclose(x.numpy(), expected, rtol=1e-8, atol=1e-8)
    assert converged == (reason < 3)


@pytest.mark.parametrize("damping", [0.1, 1.0])
def test_the_minimum_at_the_end(damping: float) -> None:
    matrix, target = system(40, 8, [9.0, 5.0, 1.0])
    exact = torch.linalg.solve(
        matrix.t() @ matrix + damping**2 * torch.eye(8, dtype=torch.float64), matrix.t() @ target
    )
    x, converged = lsmr(matrix, target, damping, tolerance=1e-13)
    assert converged
    torch.testing.assert_close(x, exact, rtol=1e-9, atol=1e-9)


def test_nothing_to_solve() -> None:
    matrix, _ = system(5, 5, [2.0])
    x, converged = lsmr(matrix, torch.zeros(5, dtype=torch.float64), 1.0)
    assert converged
    assert not x.any()


def test_a_matrix_of_bad_condition_is_said() -> None:
    matrix, target = system(12, 12, [1.0, 1e-10])
    assert not lsmr(matrix, target, 0.0, limit=1e6, tolerance=1e-12).converged
