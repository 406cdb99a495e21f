"""Blocks of the empirical Fisher matrix: losses of units and changes of weights, by explicit inverses."""

from __future__ import annotations

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given, settings

from sparsebert.one_shot.block_fisher import BlockFisher
from sparsebert.pruning.granularity import parse_granularity, spelled_out

DAMPING = 1e-2


def units_of(granularity: str, shape: tuple[int, int]) -> list[list[tuple[int, int]]]:
    """The weights of each unit, unit rows first."""
    units = parse_granularity(*spelled_out(granularity))
    rows, columns = units.block_in(torch.Size(shape))
    return [
        [
            (i, j)
            for i in range(top, min(top + rows, shape[0]))
            for j in range(left, min(left + columns, shape[1]))
        ]
        for top in range(0, shape[0], rows)
        for left in range(0, shape[1], columns)
    ]


def blocks_of(units: list[list[tuple[int, int]]], block: int) -> list[list[list[tuple[int, int]]]]:
    """As many whole units as fit into a block; a larger unit is cut into blocks of its own."""
    size = len(units[0])
    if size > block:
        return [[unit[begin : begin + block]] for unit in units for begin in range(0, len(unit), block)]
    together = block // size
    return [units[begin : begin + together] for begin in range(0, len(units), together)]


def fisher_of(gradients: np.ndarray, weights: list[tuple[int, int]]) -> np.ndarray:
    picked = np.stack([[gradient[place] for place in weights] for gradient in gradients])
    return DAMPING * np.eye(len(weights)) + picked.T @ picked / len(gradients)


@settings(max_examples=40)
@given(
    st.sampled_from(["element", "4x1", "1x4", "2x3", "8x4", "row", "column"]),
    st.integers(2, 9),
    st.integers(2, 13),
    st.sampled_from([1, 5, 12, 50]),
    st.booleans(),
    st.integers(0, 99),
)
def test_losses_and_changes(
    granularity: str, rows: int, columns: int, block: int, joint: bool, seed: int
) -> None:
    generator = np.random.default_rng(seed)
    gradients = generator.standard_normal((7, rows, columns))
    weight = generator.standard_normal((rows, columns))
    units = units_of(granularity, (rows, columns))
    if len({len(unit) for unit in units}) > 1:
        return  # units at an edge are padded: see below
    pruned = [unit for unit in units if generator.random() < 0.5]
    mask = np.ones((rows, columns), dtype=bool)
    losses, changed = dict.fromkeys(map(tuple, units), 0.0), weight.copy()
    for of_block in blocks_of(units, block):
        places = [place for part in of_block for place in part]
        fisher = fisher_of(gradients, places)
        inverse = np.linalg.inv(fisher)
        removed = []
        for part in of_block:
            unit = next(unit for unit in units if part[0] in unit)
            at = [places.index(place) for place in part]
            values = np.array([weight[place] for place in part])
            loss = np.linalg.inv(inverse[np.ix_(at, at)]) @ values
            losses[tuple(unit)] += values @ loss / 2
            if unit in pruned:
                removed += at
                if not joint:
                    for place, change in zip(places, inverse[:, at] @ loss, strict=True):
                        changed[place] -= change
        if joint and removed:
            values = np.array([weight[places[index]] for index in removed])
            change = inverse[:, removed] @ np.linalg.inv(inverse[np.ix_(removed, removed)]) @ values
            for place, each in zip(places, change, strict=True):
                changed[place] -= each
    for unit in pruned:
        for place in unit:
            mask[place] = False
    name, size = spelled_out(granularity)
    fisher = BlockFisher(
        "matrix", parse_granularity(name, size), torch.Size((rows, columns)), block, DAMPING, torch.float64
    )
    fisher.add(list(torch.from_numpy(gradients[:4])))
    fisher.add(list(torch.from_numpy(gradients[4:])))
    saliencies = fisher.saliencies(torch.from_numpy(weight)).flatten().numpy()
    assert np.abs(saliencies - [losses[tuple(unit)] for unit in units]).max() < 1e-8
    result = fisher.compensated(torch.from_numpy(weight), torch.from_numpy(mask), joint).numpy()
    assert np.abs(result - np.where(mask, changed, 0)).max() < 1e-8


@pytest.mark.parametrize("joint", [False, True])
@pytest.mark.parametrize("block", [8, 50])
def test_units_at_an_edge_count_with_their_weights(block: int, joint: bool) -> None:
    gradients, weight = torch.randn(5, 6, 7, dtype=torch.float64), torch.randn(6, 7, dtype=torch.float64)
    padded = [torch.nn.functional.pad(each, (0, 1, 0, 2)) for each in (*gradients, weight)]
    results = []
    for matrices in ([*gradients, weight], padded):
        fisher = BlockFisher(
            "matrix", parse_granularity("block", (4, 2)), matrices[0].shape, block, DAMPING, torch.float64
        )
        fisher.add(matrices[:-1])
        mask = torch.zeros(8, 8, dtype=torch.bool)
        mask[:4, ::4] = mask[:4, 1::4] = mask[4:, 2::4] = mask[4:, 3::4] = True
        mask = mask[: len(matrices[0]), : matrices[0].shape[1]]
        results.append((fisher.saliencies(matrices[-1]), fisher.compensated(matrices[-1], mask, joint)))
    assert torch.allclose(results[0][0], results[1][0])
    assert torch.allclose(results[0][1], results[1][1][:6, :7])


def test_gradients_too_large_for_the_damping_are_an_error() -> None:
    fisher = BlockFisher("query", parse_granularity("element"), torch.Size((1, 4)), 4, 1e-7, torch.float32)
    fisher.add([torch.full((1, 4), 1e9)])
    with pytest.raises(
        ValueError, match="Fisher matrix of query is singular with damping 1e-07: use a larger"
    ):
        fisher.saliencies(torch.ones(1, 4))
    with pytest.raises(ValueError, match="a gradient of query is NaN or infinite"):
        fisher.add([torch.full((1, 4), torch.inf)])


def test_joint_changes_raise_the_loss_least() -> None:
    gradients, weight = list(torch.randn(9, 4, 12)), torch.randn(4, 12)
    mask = torch.rand(4, 12) < 0.5
    fisher = BlockFisher("query", parse_granularity("element"), weight.shape, 12, DAMPING, torch.float32)
    fisher.add(gradients)
    losses = []
    for result in (
        fisher.compensated(weight, mask, joint=True),
        fisher.compensated(weight, mask, joint=False),
    ):
        change = result - weight
        slopes = torch.stack([(gradient * change).sum(1) for gradient in gradients])
        losses.append(float(slopes.square().mean(0).sum() + DAMPING * change.square().sum()))
    assert losses[0] < losses[1]
    assert losses[0] < DAMPING * float(weight.masked_fill(mask, 0).square().sum()) + float(
        torch.stack([(g * weight.masked_fill(mask, 0)).sum(1) for g in gradients]).square().mean(0).sum()
    )
