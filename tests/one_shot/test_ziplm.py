"""ZipLM against a literal numpy transcription of its algorithm, and against the optimum."""

from __future__ import annotations

import itertools
from fractions import Fraction

import numpy as np
import pytest
import torch

from sparsebert.one_shot import LayerProblem, Target
from sparsebert.one_shot.methods.ziplm import ZipLM
from sparsebert.pruning.granularity import Granularity
from sparsebert.pruning.unit_groups import UnitGroup

ROWS, COLUMNS = 10, 24
ONE_BY_ONE = ZipLM(steps=COLUMNS)


def problem(seed: int = 0, columns: int = COLUMNS) -> LayerProblem:
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(columns, columns, generator=generator, dtype=torch.float64)
    x = mixing @ torch.randn(columns, 200, generator=generator, dtype=torch.float64)
    weight = torch.randn(ROWS, columns, generator=generator, dtype=torch.float64)
    return LayerProblem("down", weight, 2 * x @ x.t() / 200, 200)


def target(width: int, kept: int, mask: torch.Tensor | None = None) -> Target:
    group = UnitGroup({"down": Granularity("head", (None, width))}, {"down": torch.Size((ROWS, COLUMNS))})
    return Target(group, Fraction(kept * width, COLUMNS), mask)


def published(
    weight: np.ndarray, hessian: np.ndarray, width: int, k: int, damping: float
) -> tuple[np.ndarray, list[int]]:
    """Algorithm 1 of the paper: W with its removed columns at 0, and the structures that are left."""
    w = weight.copy()
    inverse = np.linalg.inv(hessian + damping * np.diag(hessian).mean() * np.eye(len(hessian)))
    left = list(range(weight.shape[1] // width))
    removed_columns: list[int] = []
    for _ in range(k):
        scores = []
        for s in left:
            m = np.arange(s * width, (s + 1) * width)
            block = np.linalg.inv(inverse[np.ix_(m, m)])
            scores.append(sum(w[i, m] @ block @ w[i, m] for i in range(len(w))))
        s = left[int(np.argmin(scores))]
        m = np.arange(s * width, (s + 1) * width)
        block = np.linalg.inv(inverse[np.ix_(m, m)])
        w = w - w[:, m] @ block @ inverse[m, :]
        inverse = inverse - inverse[:, m] @ block @ inverse[m, :]
        left.remove(s)
        removed_columns += m.tolist()
    w[:, removed_columns] = 0
    return w, left


def optimum(weight: np.ndarray, hessian: np.ndarray, kept: np.ndarray) -> np.ndarray:
    """The weights in these columns that come nearest to the outputs of all columns: least squares."""
    best = np.zeros_like(weight)
    best[:, kept] = np.linalg.solve(hessian[np.ix_(kept, kept)], hessian[kept] @ weight.T).T
    return best


@pytest.mark.parametrize(("width", "kept"), [(1, 17), (1, 3), (4, 4), (6, 1)])
def test_parity_with_the_published_algorithm(width: int, kept: int) -> None:
    layer = problem()
    result = ONE_BY_ONE.prune_layer(layer, target(width, kept))
    expected, left = published(
        layer.weight.numpy(), layer.hessian.numpy(), width, COLUMNS // width - kept, damping=0.01
    )
    np.testing.assert_allclose(result.weight.numpy(), expected, atol=1e-8, rtol=1e-8)
    units = result.mask.view(ROWS, -1, width)
    assert units.all(2).all(0).nonzero().flatten().tolist() == left
    assert int(result.mask.sum()) == kept * width * ROWS


@pytest.mark.parametrize("method", [ONE_BY_ONE, ZipLM(steps=5)], ids=["one at a time", "5 at a time"])
def test_weights_are_the_best_for_their_columns(method: ZipLM) -> None:
    layer = problem()
    result = method.prune_layer(layer, target(1, 9))
    columns = result.mask[0].nonzero().flatten().numpy()
    best = optimum(layer.weight.numpy(), layer.damped_hessian(method.damping).numpy(), columns)
    np.testing.assert_allclose(result.weight.numpy(), best, atol=1e-8, rtol=1e-8)


def test_one_removal_is_the_best_of_all() -> None:
    layer = problem()
    errors = {}
    damped = LayerProblem("down", layer.weight, layer.damped_hessian(0.01), layer.tokens)
    for head in range(6):
        kept = np.array([column for column in range(COLUMNS) if column // 4 != head])
        best = optimum(layer.weight.numpy(), damped.hessian.numpy(), kept)
        errors[head] = damped.error(torch.from_numpy(best))
    result = ONE_BY_ONE.prune_layer(layer, target(4, 5))
    (removed,) = (~result.mask[0].view(6, 4).any(1)).nonzero().flatten().tolist()
    assert removed == min(errors, key=errors.__getitem__)
    assert damped.error(result.weight) == pytest.approx(errors[removed], rel=1e-9)


def test_a_given_mask_is_kept_and_compensated() -> None:
    layer = problem()
    mask = torch.ones(ROWS, COLUMNS, dtype=torch.bool)
    mask[:, 4:12] = False
    result = ONE_BY_ONE.prune_layer(layer, target(4, 6, mask))
    assert torch.equal(result.mask, mask)
    kept = mask[0].nonzero().flatten().numpy()
    best = optimum(layer.weight.numpy(), layer.damped_hessian(0.01).numpy(), kept)
    np.testing.assert_allclose(result.weight.numpy(), best, atol=1e-8, rtol=1e-8)


def test_losses_of_one_sweep_are_those_of_separate_prunings() -> None:
    layer = problem()
    counts = [24, 20, 11, 5, 1, 0]
    losses = ONE_BY_ONE.losses(layer, target(1, 24), counts)
    damped = LayerProblem("down", layer.weight, layer.damped_hessian(0.01), layer.tokens)
    for count, loss in zip(counts, losses, strict=True):
        pruned = ONE_BY_ONE.prune_layer(layer, target(1, count))
        assert loss == pytest.approx(damped.error(pruned.weight), abs=1e-10)
    assert losses[0] == 0
    assert losses[-1] == pytest.approx(1)
    assert all(before < after for before, after in itertools.pairwise(losses))


def test_several_at_a_time_lose_little_more() -> None:
    layer = problem()
    one, five = (method.losses(layer, target(1, 24), [8])[0] for method in (ONE_BY_ONE, ZipLM(steps=5)))
    assert one <= five < 1.2 * one


def test_units_whose_inputs_are_always_0_go_first_and_change_nothing() -> None:
    layer = problem()
    hessian = layer.hessian.clone()
    hessian[8:12], hessian[:, 8:12] = 0, 0
    silent = LayerProblem("down", layer.weight, hessian, layer.tokens)
    result = ONE_BY_ONE.prune_layer(silent, target(1, 20))
    assert result.mask[0].logical_not().nonzero().flatten().tolist() == [8, 9, 10, 11]
    assert silent.error(result.weight) == pytest.approx(0, abs=1e-15)
    torch.testing.assert_close(result.weight, layer.weight.where(result.mask, 0), rtol=0, atol=1e-10)


@pytest.mark.parametrize("block", [(1, 1), (4, 1), (1, None)])
def test_units_that_are_no_whole_columns(block: tuple[int, int | None]) -> None:
    group = UnitGroup({"down": Granularity("block", block)}, {"down": torch.Size((ROWS, COLUMNS))})
    with pytest.raises(ValueError, match=r"^ziplm removes whole columns: use .*, not 'block'$"):
        ONE_BY_ONE.prune_layer(problem(), Target(group, Fraction(1, 2)))


@pytest.mark.parametrize("steps", [0, -3, 2.0, True])
def test_bad_steps(steps: object) -> None:
    with pytest.raises(ValueError, match=r"^steps must be a positive int, got "):
        ZipLM(steps=steps)  # type: ignore[arg-type]
