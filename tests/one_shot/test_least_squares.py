"""Least squares on a support: exactly, and by conjugate gradients."""

from __future__ import annotations

import hypothesis.strategies as st
import numpy as np
import torch
from hypothesis import given, settings

from sparsebert.one_shot.conjugate_gradients import conjugate_gradients
from sparsebert.one_shot.least_squares import solve_kept
from tests.one_shot.layers import layer


def normal_equations(weight: np.ndarray, hessian: np.ndarray, mask: np.ndarray) -> np.ndarray:
    solved = np.zeros_like(weight)
    for row, kept in enumerate(mask):
        goal = (weight[row] @ hessian)[kept]
        solved[row, kept] = np.linalg.solve(hessian[np.ix_(kept, kept)], goal)
    return solved


@settings(max_examples=30)
@given(st.integers(1, 9), st.integers(1, 24), st.sampled_from([0.0, 0.2, 0.7, 1.0]), st.integers(0, 99))
def test_both_solve_the_normal_equations(rows: int, columns: int, density: float, seed: int) -> None:
    problem = layer(rows, columns, seed=seed)
    mask = torch.rand(rows, columns, generator=torch.Generator().manual_seed(seed)) < density
    mask[rows // 2 :] = mask[0].clone()
    hessian = problem.damped_hessian(0.1)
    expected = normal_equations(problem.weight.numpy(), hessian.numpy(), mask.numpy())
    exact = solve_kept(problem.weight, hessian, mask)
    assert np.abs(exact.numpy() - expected).max() < 1e-8
    start = problem.weight.where(mask, 0.0)
    iterated = conjugate_gradients(hessian, problem.weight @ hessian, mask, start, 20 * columns, 1e-13)
    assert np.abs(iterated.numpy() - expected).max() < 1e-8
    assert not iterated[~mask].any()


def test_more_steps_never_raise_the_error() -> None:
    problem = layer(6, 40)
    mask = torch.rand(6, 40) < 0.4
    start = problem.weight.where(mask, 0.0)
    goal = problem.weight @ problem.hessian
    errors = [
        problem.error(conjugate_gradients(problem.hessian, goal, mask, start, steps)) for steps in range(12)
    ]
    assert errors == sorted(errors, reverse=True)
    assert errors[0] == problem.error(start)
