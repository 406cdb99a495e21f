"""SparseGPT: algorithm 1 of the paper, column by column, with the inverse of every remaining Hessian."""

from __future__ import annotations

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given, settings

from sparsebert.one_shot import LayerProblem, SparseGPT
from sparsebert.one_shot.layer_problem import SingularHessianError
from tests.one_shot.layers import KEY, layer, problem_of, target
from tests.one_shot.methods.transcribed import Array, keep_best, keep_n_of_m

TOLERANCE = 1e-8


def inverses(hessian: Array, damping: float) -> list[Array]:
    """For each column j, the inverse of the damped Hessian of the columns from j on."""
    damped = hessian + damping * np.mean(np.diag(hessian)) * np.eye(len(hessian))
    return [np.linalg.inv(damped[j:, j:]) for j in range(len(damped))]


def published(
    weight: Array,
    hessian: Array,
    sparsity: float,
    *,
    height: int = 1,
    width: int = 1,
    columns: int = 128,
    pattern: tuple[int, int] | None = None,
    mask: Array | None = None,
    damping: float = 0.01,
) -> Array:
    """Algorithm 1: at column j the mask of the next columns is chosen by w^2 / [H^-1]_jj, and each column's
    loss is made up for by all columns at its right.
    """
    weight = weight.copy()
    total = weight.shape[1]
    inverse = inverses(hessian, damping)
    leading = np.array([each[0, 0] for each in inverse])
    chosen = np.ones(weight.shape, dtype=bool) if mask is None else mask
    step = pattern[1] if pattern else columns // width * width
    for j in range(total):
        if mask is None and j % step == 0:
            end = min(j + step, total)
            scores = weight[:, j:end] ** 2 / leading[j:end]
            if pattern:
                chosen[:, j:end] = keep_n_of_m(scores, *pattern)
            else:
                kept = round(scores.size // (height * width) * (1 - sparsity))
                chosen[:, j:end] = keep_best(scores, height, width, kept)
        error = np.where(chosen[:, j], 0, weight[:, j]) / inverse[j][0, 0]
        weight[:, j:] -= np.outer(error, inverse[j][0])
    return np.where(chosen, weight, 0)


def agree(pruned: torch.Tensor, expected: Array) -> None:
    assert np.abs(pruned.numpy() - expected).max() < TOLERANCE
    assert np.array_equal(pruned.numpy() == 0, expected == 0)


@settings(max_examples=20)
@given(
    st.integers(1, 8),
    st.integers(1, 40),
    st.integers(1, 24),
    st.sampled_from([0.25, 0.5, 0.9]),
    st.integers(0, 99),
)
def test_single_weights(rows: int, inputs: int, columns: int, sparsity: float, seed: int) -> None:
    problem = layer(rows, inputs, seed=seed)
    pruned = SparseGPT(columns=columns).prune_layer(problem, target(problem, sparsity=sparsity))
    agree(
        pruned.weight,
        published(problem.weight.numpy(), problem.hessian.numpy(), sparsity, columns=columns),
    )


@pytest.mark.parametrize(("height", "width"), [(4, 1), (16, 1), (1, 4), (4, 4), (8, 2), (16, 32)])
@pytest.mark.parametrize("columns", [16, 128])
def test_blocks(height: int, width: int, columns: int) -> None:
    problem = layer(32, 96)
    pruned = SparseGPT(columns=columns).prune_layer(problem, target(problem, f"{height}x{width}", 0.75))
    expected = published(
        problem.weight.numpy(),
        problem.hessian.numpy(),
        0.75,
        height=height,
        width=width,
        columns=max(columns, width),
    )
    agree(pruned.weight, expected)


@pytest.mark.parametrize("pattern", [(2, 4), (1, 4), (4, 8)])
@pytest.mark.parametrize("columns", [8, 128])
def test_patterns_are_chosen_when_the_sweep_reaches_them(pattern: tuple[int, int], columns: int) -> None:
    problem = layer(6, 48)
    pruned = SparseGPT(columns=columns).prune_layer(problem, target(problem, "{}:{}".format(*pattern)))
    expected = published(problem.weight.numpy(), problem.hessian.numpy(), 0, pattern=pattern)
    agree(pruned.weight, expected)


@pytest.mark.parametrize(
    ("units", "height", "width", "kept"),
    [("row", 1, 40, 4), ("panel(4,2)", 4, 2, None)],
    ids=["row", "panel"],
)
def test_rows_and_panels_are_chosen_before_the_sweep(
    units: str, height: int, width: int, kept: int | None
) -> None:
    problem = layer(16, 40)
    wanted = target(problem, units, 0.75, round_to=8 if kept is None else None)
    pruned = SparseGPT(columns=16).prune_layer(problem, wanted)
    leading = np.array([each[0, 0] for each in inverses(problem.hessian.numpy(), 0.01)])
    scores = problem.weight.numpy() ** 2 / leading
    if kept is None:
        mask = wanted.choose(torch.from_numpy(scores)).numpy()
        assert (mask.reshape(4, 4, 40)[:, 0].sum(1) % 8 == 0).all()
        assert abs(mask.mean() - 0.25) <= 8 * 4 / mask.size
    else:
        mask = keep_best(scores, height, width, kept)
    agree(pruned.weight, published(problem.weight.numpy(), problem.hessian.numpy(), 0, mask=mask))


def test_a_mask_chosen_elsewhere_is_followed() -> None:
    problem = layer(8, 30)
    mask = torch.rand(8, 30, generator=torch.Generator().manual_seed(1)) < 0.4
    pruned = SparseGPT(columns=7).prune_layer(problem, target(problem, mask=mask))
    assert torch.equal(pruned.mask, mask)
    agree(
        pruned.weight, published(problem.weight.numpy(), problem.hessian.numpy(), 0, mask=mask.numpy().copy())
    )


@settings(max_examples=20)
@given(st.integers(1, 8), st.integers(1, 70), st.integers(1, 24), st.sampled_from([0.1, 0.37, 0.8]))
def test_every_block_of_columns_keeps_its_exact_share(
    rows: int, inputs: int, columns: int, sparsity: float
) -> None:
    problem = layer(rows, inputs)
    wanted = target(problem, sparsity=sparsity)
    pruned = SparseGPT(columns=columns).prune_layer(problem, wanted)
    for part in pruned.mask.split(columns, dim=1):
        assert int(part.sum()) == round(wanted.density * part.numel())


def test_of_equal_saliencies_the_first_stay() -> None:
    problem = problem_of(
        torch.ones(2, 6, dtype=torch.float64), torch.eye(6, dtype=torch.float64).repeat(1, 3)
    )
    pruned = SparseGPT().prune_layer(problem, target(problem, sparsity=0.75))
    assert pruned.mask.tolist() == [[True] * 3 + [False] * 3, [False] * 6]
    assert torch.equal(pruned.weight, pruned.mask.double())


def test_independent_inputs_leave_nothing_to_compensate() -> None:
    weight = torch.randn(4, 8, dtype=torch.float64)
    problem = problem_of(weight, torch.eye(8, dtype=torch.float64))
    pruned = SparseGPT().prune_layer(problem, target(problem))
    assert torch.equal(pruned.weight, weight.where(pruned.mask, 0.0))


@pytest.mark.parametrize("damping", [0.01, 0.0])
def test_weights_of_dead_inputs_go_first_and_change_nothing(damping: float) -> None:
    dead = torch.zeros(12, dtype=torch.bool)
    dead[[1, 5, 9]] = True
    problem = with_dead_inputs(layer(4, 12), dead)
    pruned = SparseGPT(damping).prune_layer(problem, target(problem, sparsity=0.25))
    assert torch.equal(pruned.mask, ~dead.expand(4, -1))
    assert torch.allclose(pruned.weight, problem.weight.where(pruned.mask, 0.0), rtol=0, atol=TOLERANCE)
    fewer = SparseGPT(damping).prune_layer(problem, target(problem, sparsity=0.125))
    assert not fewer.mask[:, ~dead].logical_not().any()


def with_dead_inputs(problem: LayerProblem, dead: torch.Tensor) -> LayerProblem:
    alive = ~dead
    return LayerProblem(problem.key, problem.weight, problem.hessian * alive * alive[:, None], problem.tokens)


def test_a_singular_hessian_is_an_error_that_names_the_layer() -> None:
    problem = layer(4, 12, tokens=5)
    with pytest.raises(SingularHessianError, match=f"{KEY} is singular .* 5 calibration tokens .* pass more"):
        SparseGPT(damping=0.0).prune_layer(problem, target(problem))
    assert SparseGPT().prune_layer(problem, target(problem)).weight.isfinite().all()
