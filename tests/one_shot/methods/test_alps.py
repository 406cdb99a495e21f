"""ALPS against a plain transcription of the authors' code, and its support against greedy ones."""

from __future__ import annotations

from collections.abc import Callable

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given, settings

from sparsebert.one_shot import Alps, SparseGPT
from sparsebert.one_shot.layer_problem import SingularHessianError
from tests.one_shot.layers import KEY, layer, target
from tests.one_shot.methods.transcribed import Array, keep_best, keep_n_of_m
from tests.one_shot.test_least_squares import normal_equations


def published(weight: Array, hessian: Array, choose: Callable[[Array], Array]) -> Array:
    """`ALPS_admm` and `cg_batch` of alps.py, with its numbers; matrices are [in, out] there and here.

    ``choose`` maps squares [out, in] to the mask of the largest units.
    """
    rho, steps = 0.1, 300
    xtx = hessian + 0.01 * np.mean(np.diag(hessian)) * np.eye(len(hessian))
    norm = np.sqrt(np.diag(xtx))
    xtx = xtx / norm / norm[:, None]
    original = (weight * norm).T
    xty = xtx @ original
    values, vectors = np.linalg.eigh(xtx)

    def project(matrix: Array) -> Array:
        return np.where(choose(matrix.T**2).T, matrix, 0)

    b, v = original.copy(), np.zeros_like(original)
    first = d = project(original)
    before = first == 0
    kept = (first != 0).sum()
    moved = False
    for i in range(steps):
        b = vectors @ np.diag(1 / (values + rho)) @ vectors.T @ (xty - v + rho * d)
        d = project((v + rho * b) / rho)
        v = v + rho * (b - d)
        if (i + 1) % 3:
            continue
        change = ((d == 0) != before).sum()
        if change / kept > 0.1:
            moved, rho = True, rho * 1.3
        elif change / kept > 0.005:
            moved, rho = True, rho * 1.2
        elif change > 0.5:
            if moved:
                rho *= 1.1
            else:
                rho /= 5
                b, d, v = original.copy(), first, np.zeros_like(b)
        elif moved:
            break
        else:
            rho /= 5
        before = d == 0
        rho = min(rho, 1e6)
        if i >= 30 and change / kept < 0.0003:
            break
    return conjugate_gradients(xtx, xty, project(b)).T / norm


def conjugate_gradients(a: Array, goal: Array, x: Array) -> Array:
    """Ten steps of `cg_batch`, without a preconditioner."""
    support = x != 0
    r = (goal - a @ x) * support
    p = r
    for _ in range(10):
        energy = (r * r).sum(0)
        curvature = (p * (a @ p)).sum(0)
        alpha = energy / np.where(curvature == 0, 1e-8, curvature)
        x = x + alpha * p
        r = (r - alpha * (a @ p)) * support
        p = r + (r * r).sum(0) / np.where(energy == 0, 1e-8, energy) * p
    return x


def agree(pruned: torch.Tensor, expected: Array) -> None:
    assert np.abs(pruned.numpy() - expected).max() < 1e-8
    assert np.array_equal(pruned.numpy() == 0, expected == 0)


@settings(max_examples=15)
@given(st.integers(1, 12), st.integers(1, 24), st.sampled_from([0.25, 0.5, 0.8]), st.integers(0, 99))
def test_single_weights(rows: int, columns: int, sparsity: float, seed: int) -> None:
    problem = layer(rows, columns, seed=seed)
    kept = round(target(problem, sparsity=sparsity).density * rows * columns)
    if not kept:
        return
    expected = published(
        problem.weight.numpy(), problem.hessian.numpy(), lambda squares: keep_best(squares, 1, 1, kept)
    )
    agree(Alps(dtype="float64").prune_layer(problem, target(problem, sparsity=sparsity)).weight, expected)


@pytest.mark.parametrize(("height", "width"), [(4, 1), (16, 1), (1, 4), (4, 4), (16, 32)])
def test_blocks(height: int, width: int) -> None:
    problem = layer(32, 64)
    kept = 32 * 64 // (height * width) // 4
    expected = published(
        problem.weight.numpy(),
        problem.hessian.numpy(),
        lambda squares: keep_best(squares, height, width, kept),
    )
    pruned = Alps(dtype="float64").prune_layer(problem, target(problem, f"{height}x{width}", 0.75))
    agree(pruned.weight, expected)


@pytest.mark.parametrize("pattern", [(2, 4), (1, 4), (4, 8)])
def test_patterns(pattern: tuple[int, int]) -> None:
    problem = layer(6, 32)
    expected = published(
        problem.weight.numpy(), problem.hessian.numpy(), lambda squares: keep_n_of_m(squares, *pattern)
    )
    pruned = Alps(dtype="float64").prune_layer(problem, target(problem, "{}:{}".format(*pattern)))
    agree(pruned.weight, expected)


def test_panels_keep_multiples_of_their_quantum() -> None:
    problem = layer(16, 24)
    pruned = Alps().prune_layer(problem, target(problem, "panel(8,2)", 0.5, round_to=4))
    panels = pruned.mask.view(2, 8, 24)
    assert (panels == panels[:, :1]).all()
    assert (panels[:, 0].sum(1) % 4 == 0).all()


@pytest.mark.parametrize("granularity", ["element", "4x1", "row", "2:4"])
def test_float32_finds_as_good_weights(granularity: str) -> None:
    problem = layer(32, 64, tokens=200)
    errors = [
        problem.error(Alps(dtype=dtype).prune_layer(problem, target(problem, granularity)).weight)
        for dtype in ("float32", "float64")
    ]
    assert errors[0] == pytest.approx(errors[1], rel=0.02)


@pytest.mark.parametrize("granularity", ["element", "4x1"])
@pytest.mark.parametrize("sparsity", [0.7, 0.8, 0.9])
def test_it_loses_less_than_sparsegpt(granularity: str, sparsity: float) -> None:
    problem = layer(64, 128, tokens=500)
    errors = [
        problem.error(method.prune_layer(problem, target(problem, granularity, sparsity)).weight)
        for method in (Alps(), SparseGPT())
    ]
    assert errors[0] < errors[1]


def test_a_mask_is_followed_to_its_least_squares() -> None:
    problem = layer(8, 30)
    mask = torch.rand(8, 30) < 0.4
    pruned = Alps(dtype="float64").prune_layer(problem, target(problem, mask=mask))
    assert torch.equal(pruned.mask, mask)
    damped = problem.damped_hessian(0.01)
    exact = normal_equations(problem.weight.numpy(), damped.numpy(), mask.numpy())
    assert problem.error(pruned.weight) <= problem.error(torch.from_numpy(exact)) * 1.001


def test_weights_of_dead_inputs_go_first() -> None:
    problem = layer(4, 12)
    problem.hessian[[1, 5, 9]] = 0
    problem.hessian[:, [1, 5, 9]] = 0
    pruned = Alps().prune_layer(problem, target(problem, sparsity=0.25))
    assert torch.equal(pruned.mask, (problem.hessian.diagonal() > 0).expand(4, -1))
    assert problem.error(pruned.weight) < 1e-6


@pytest.mark.parametrize("sparsity", [0.0, 0.99])
def test_nearly_nothing_is_pruned_or_kept(sparsity: float) -> None:
    problem = layer(10, 20)
    pruned = Alps().prune_layer(problem, target(problem, sparsity=sparsity))
    assert int(pruned.mask.sum()) == round(200 * (1 - sparsity))
    assert pruned.weight.isfinite().all()


def test_few_tokens_are_enough_but_inputs_of_zeros_are_an_error() -> None:
    problem = layer(4, 12, tokens=5)
    assert Alps(damping=0.0).prune_layer(problem, target(problem)).weight.isfinite().all()
    problem.hessian.zero_()
    with pytest.raises(SingularHessianError, match=f"{KEY} is singular"):
        Alps().prune_layer(problem, target(problem))


def test_a_wrong_dtype_is_refused() -> None:
    with pytest.raises(ValueError, match="dtype of alps must be 'float32' or 'float64', got 'bfloat16'"):
        Alps(dtype="bfloat16")
