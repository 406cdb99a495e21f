"""Wanda: abs(w) times the norm of the input, single weights within their row."""

from __future__ import annotations

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given, settings

from sparsebert.one_shot import Wanda
from tests.one_shot.layers import layer, problem_of, target
from tests.one_shot.methods.transcribed import keep_best, keep_n_of_m


def published(weight: np.ndarray, inputs: np.ndarray, sparsity: float) -> np.ndarray:
    """Algorithm 1 of the paper: S = abs(W) * norm(X), and the lowest of each row are pruned."""
    scores = np.abs(weight) * np.linalg.norm(inputs, axis=1)
    pruned = np.argsort(scores, axis=1, kind="stable")[:, : round(weight.shape[1] * sparsity)]
    mask = np.ones(weight.shape, dtype=bool)
    np.put_along_axis(mask, pruned, False, axis=1)
    return np.where(mask, weight, 0)


@settings(max_examples=30)
@given(st.integers(1, 9), st.integers(2, 24), st.sampled_from([0.25, 0.5, 0.75]), st.integers(0, 99))
def test_single_weights_compete_within_their_row(rows: int, columns: int, sparsity: float, seed: int) -> None:
    columns *= 4
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(rows, columns, generator=generator, dtype=torch.float64)
    inputs = torch.randn(columns, 30, generator=generator, dtype=torch.float64)
    problem = problem_of(weight, inputs)
    pruned = Wanda().prune_layer(problem, target(problem, sparsity=sparsity))
    assert np.array_equal(pruned.weight, published(weight.numpy(), inputs.numpy(), sparsity))
    assert torch.equal(pruned.mask, pruned.weight != 0)


@pytest.mark.parametrize(("units", "height", "width"), [("4x1", 4, 1), ("2x6", 2, 6), ("row", 1, 24)])
def test_larger_units_compete_within_the_matrix(units: str, height: int, width: int) -> None:
    problem = layer(8, 24)
    pruned = Wanda().prune_layer(problem, target(problem, units, 0.75))
    scores = problem.weight.abs() * problem.hessian.diagonal().sqrt()
    kept = 8 * 24 // (height * width) // 4
    assert np.array_equal(pruned.mask, keep_best(scores.numpy(), height, width, kept))
    assert torch.equal(pruned.weight, problem.weight.where(pruned.mask, 0.0))


def test_patterns_keep_n_of_m() -> None:
    problem = layer(5, 24)
    scores = problem.weight.abs() * problem.hessian.diagonal().sqrt()
    pruned = Wanda().prune_layer(problem, target(problem, "2:4"))
    assert np.array_equal(pruned.mask, keep_n_of_m(scores.numpy(), 2, 4))


def test_of_equal_scores_the_first_stay() -> None:
    problem = problem_of(
        torch.ones(2, 6, dtype=torch.float64), torch.eye(6, dtype=torch.float64).repeat(1, 3)
    )
    pruned = Wanda().prune_layer(problem, target(problem, sparsity=0.5))
    assert pruned.mask.tolist() == [[True] * 3 + [False] * 3] * 2


def test_weights_of_dead_inputs_go_first() -> None:
    problem = layer(4, 12)
    problem.hessian[[1, 5, 9]] = 0
    problem.hessian[:, [1, 5, 9]] = 0
    pruned = Wanda().prune_layer(problem, target(problem, sparsity=0.25))
    assert torch.equal(pruned.mask, (problem.hessian.diagonal() > 0).expand(4, -1))
