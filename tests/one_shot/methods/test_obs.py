"""Greedy optimal brain surgeon against plain loops that recompute every inverse, and against all supports."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given, settings

from sparsebert.one_shot import LayerProblem, OptimalBrainSurgeon, SparseGPT, Wanda
from sparsebert.one_shot.layer_problem import SingularHessianError
from tests.one_shot.layers import KEY, layer, target
from tests.one_shot.methods.transcribed import Array
from tests.one_shot.test_least_squares import normal_equations


def removals(rows: Array, hessian: Array, width: int) -> Iterator[tuple[float, int]]:
    """Yield (loss, unit) of each greedy removal from a band of rows, as the paper defines them.

    The inverse of the Hessian of the remaining weights is computed anew each time.
    """
    rows = rows.copy()
    columns = len(hessian)
    left = list(range(-(-columns // width)))
    while left:
        alive = [j for unit in left for j in range(unit * width, min((unit + 1) * width, columns))]
        inverse = np.linalg.inv(hessian[np.ix_(alive, alive)])
        losses = []
        for unit in left:
            at = [place for place, j in enumerate(alive) if j // width == unit]
            part = rows[:, [alive[place] for place in at]]
            losses.append(np.trace(part @ np.linalg.inv(inverse[np.ix_(at, at)]) @ part.T))
        best = int(np.argmin(losses))
        at = [place for place, j in enumerate(alive) if j // width == left[best]]
        part = rows[:, [alive[place] for place in at]]
        rows[:, alive] -= part @ np.linalg.inv(inverse[np.ix_(at, at)]) @ inverse[at]
        yield losses[best], left.pop(best)


def greedy_mask(problem: LayerProblem, height: int, width: int, removed: int) -> Array:
    """Remove units from the bands whose next loss is least, one by one."""
    weight, hessian = problem.weight.numpy(), problem.hessian.numpy()
    traces = [
        list(removals(weight[begin : begin + height], hessian, width))
        for begin in range(0, len(weight), height)
    ]
    mask = np.ones(weight.shape, dtype=bool)
    for _ in range(removed):
        band = min((band for band, trace in enumerate(traces) if trace), key=lambda band: traces[band][0][0])
        _, unit = traces[band].pop(0)
        mask[band * height : (band + 1) * height, unit * width : (unit + 1) * width] = False
    return mask


def agree(problem: LayerProblem, granularity: str, sparsity: float, mask: Array) -> None:
    pruned = OptimalBrainSurgeon().prune_layer(problem, target(problem, granularity, sparsity))
    assert np.array_equal(pruned.mask, mask)
    expected = normal_equations(problem.weight.numpy(), problem.hessian.numpy(), mask)
    assert np.abs(pruned.weight.numpy() - expected).max() < 1e-8


@settings(max_examples=20)
@given(st.integers(1, 5), st.integers(2, 12), st.integers(1, 99))
def test_single_weights(rows: int, columns: int, seed: int) -> None:
    problem = layer(rows, columns, seed=seed)
    agree(problem, "element", 0.5, greedy_mask(problem, 1, 1, rows * columns - round(rows * columns / 2)))


@pytest.mark.parametrize(
    ("granularity", "height", "width", "rows", "columns"),
    [
        ("4x1", 4, 1, 8, 12),
        ("1x4", 1, 4, 4, 16),
        ("2x3", 2, 3, 6, 12),
        ("4x1", 4, 1, 16, 10),
        ("row", 1, 6, 8, 6),
        ("column", 8, 1, 8, 12),
    ],
)
def test_units(granularity: str, height: int, width: int, rows: int, columns: int) -> None:
    problem = layer(rows, columns, seed=3)
    units = rows * columns // (height * width)
    agree(problem, granularity, 0.5, greedy_mask(problem, height, width, units - round(units / 2)))


def test_units_at_the_edges() -> None:
    problem = layer(7, 11)
    pruned = OptimalBrainSurgeon().prune_layer(problem, target(problem, "4x3", 0.5))
    kept = pruned.mask[::4, ::3].repeat_interleave(4, 0).repeat_interleave(3, 1)[:7, :11]
    assert torch.equal(pruned.mask, kept)
    assert abs(int(kept.sum()) - 38.5) <= 6


def test_panels_keep_multiples_of_their_quantum() -> None:
    problem = layer(16, 24)
    pruned = OptimalBrainSurgeon().prune_layer(problem, target(problem, "panel(8,2)", 0.5, round_to=4))
    panels = pruned.mask.view(2, 8, 24)
    assert (panels == panels[:, :1]).all()
    assert (panels[:, 0].sum(1) % 4 == 0).all()


def test_patterns_spare_groups_that_are_full() -> None:
    problem = layer(3, 16)
    mask = np.ones((3, 16), dtype=bool)
    for row in range(3):
        weight, left = problem.weight.numpy()[row].copy(), list(range(16))
        for _ in range(8):
            inverse = np.linalg.inv(problem.hessian.numpy()[np.ix_(left, left)])
            losses = weight[left] ** 2 / np.diag(inverse)
            free = [mask[row, j // 4 * 4 : j // 4 * 4 + 4].sum() > 2 for j in left]
            place = int(np.argmin(np.where(free, losses, np.inf)))
            weight[left] -= weight[left[place]] / inverse[place, place] * inverse[place]
            mask[row, left.pop(place)] = False
    agree(problem, "2:4", 0.5, mask)


@pytest.mark.parametrize("seed", range(5))
def test_greedy_is_close_to_the_best_of_all_supports(seed: int) -> None:
    problem = layer(1, 10, seed=seed)
    pruned = OptimalBrainSurgeon().prune_layer(problem, target(problem, sparsity=0.5))
    errors = []
    for kept in itertools.combinations(range(10), 5):
        mask = np.zeros((1, 10), dtype=bool)
        mask[0, list(kept)] = True
        solved = normal_equations(problem.weight.numpy(), problem.hessian.numpy(), mask)
        errors.append(problem.error(torch.from_numpy(solved)))
    rank = sum(error < problem.error(pruned.weight) * (1 - 1e-9) for error in errors)
    assert rank < 0.1 * len(errors)


@pytest.mark.parametrize("granularity", ["element", "4x1", "4x4"])
def test_it_loses_less_than_one_sweep(granularity: str) -> None:
    problem = layer(32, 64, tokens=400)
    greedy, sweep, scores = (
        problem.error(method.prune_layer(problem, target(problem, granularity, 0.7)).weight)
        for method in (OptimalBrainSurgeon(0.01), SparseGPT(), Wanda())
    )
    assert greedy < min(sweep, scores)


def test_a_mask_is_followed() -> None:
    problem = layer(4, 12)
    mask = torch.rand(4, 12) < 0.5
    pruned = OptimalBrainSurgeon().prune_layer(problem, target(problem, mask=mask))
    assert torch.equal(pruned.mask, mask)


def test_weights_of_dead_inputs_go_first() -> None:
    problem = layer(4, 12)
    problem.hessian[[1, 5, 9]] = 0
    problem.hessian[:, [1, 5, 9]] = 0
    pruned = OptimalBrainSurgeon().prune_layer(problem, target(problem, sparsity=0.25))
    assert torch.equal(pruned.mask, (problem.hessian.diagonal() > 0).expand(4, -1))
    assert problem.error(pruned.weight) < 1e-12


def test_a_large_layer_is_refused() -> None:
    weight = torch.zeros(768, 768, dtype=torch.float64)
    problem = LayerProblem(KEY, weight, torch.eye(768, dtype=torch.float64), 1)
    with pytest.raises(ValueError, match=f"{KEY} of 768 x 768 weights is too large for obs"):
        OptimalBrainSurgeon().prune_layer(problem, target(problem))


def test_a_singular_hessian_is_an_error_that_names_the_layer() -> None:
    problem = layer(4, 12, tokens=5)
    with pytest.raises(SingularHessianError, match=f"{KEY} is singular"):
        OptimalBrainSurgeon().prune_layer(problem, target(problem))
