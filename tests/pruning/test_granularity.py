"""Granularity: which weights form a unit, what it scores, and the mask that a choice of units makes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from torch import Tensor

from sparsebert.pruning.granularity import keep_n_of_m, parse_granularity
from sparsebert.pruning.top_k import ranked
from sparsebert.pruning.unit_groups import POOLING, UnitGroup

shapes = st.tuples(st.integers(1, 9), st.integers(1, 9)).map(torch.Size)
kinds = st.sampled_from(["element", "row", "column", "block"])


def draw_granularity(data: st.DataObject) -> Any:
    name = data.draw(kinds)
    size = data.draw(st.tuples(st.integers(1, 5), st.integers(1, 5))) if name == "block" else None
    return parse_granularity(name, size)


@settings(max_examples=settings.default.max_examples // 2)
@given(shapes, st.data())
def test_every_weight_is_in_one_unit_of_its_size(shape: torch.Size, data: st.DataObject) -> None:
    units = draw_granularity(data)
    grid = units.units(shape)
    numbered = torch.arange(grid[0] * grid[1]).view(grid)
    membership = units.expand(numbered, shape)
    assert membership.shape == shape
    counted = torch.bincount(membership.flatten()).view(grid)
    assert torch.equal(counted, torch.as_tensor(units.sizes(shape)).expand(grid))
    rows, columns = units.block_in(shape)
    for i in range(shape[0]):
        for j in range(shape[1]):
            assert membership[i, j] == numbered[i // rows, j // columns]


@pytest.mark.parametrize("rule", POOLING)
@settings(max_examples=settings.default.max_examples // 2)
@given(shapes, st.data())
def test_a_unit_is_scored_by_its_own_weights(rule: str, shape: torch.Size, data: st.DataObject) -> None:
    units = draw_granularity(data)
    grid = units.units(shape)
    scores = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    membership = units.expand(torch.arange(grid[0] * grid[1]).view(grid), shape)
    rules: dict[str, Callable[[Tensor], Tensor]] = {
        "mean": torch.mean,
        "max": torch.amax,
        "rms": lambda x: x.square().mean().sqrt(),
    }
    expected = torch.stack([rules[rule](scores[membership == i].double()) for i in range(grid[0] * grid[1])])
    pooled = UnitGroup({"a": units}, {"a": shape}).pool({"a": scores}, rule)
    assert pooled.dtype == torch.float32
    if grid != tuple(shape):
        torch.testing.assert_close(pooled, expected.float().view(grid), rtol=1e-6, atol=0)


@settings(max_examples=settings.default.max_examples // 2)
@given(st.integers(1, 5), st.integers(1, 5), st.integers(2, 6), st.data())
def test_n_of_every_m_are_kept_and_none_beats_them(
    rows: int, groups: int, m: int, data: st.DataObject
) -> None:
    n = data.draw(st.integers(1, m - 1))
    values = st.lists(
        st.sampled_from([0.0, 1.0, 2.0, -1.0]), min_size=rows * groups * m, max_size=rows * groups * m
    )
    scores = torch.tensor(data.draw(values)).view(rows, groups * m)
    mask = keep_n_of_m(ranked(scores), n, m)
    assert mask.shape == scores.shape
    assert mask.is_contiguous()
    for group, kept in zip(scores.view(-1, m), mask.view(-1, m), strict=True):
        best = group.argsort(descending=True, stable=True)[:n]
        assert set(kept.nonzero().flatten().tolist()) == set(best.tolist())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("elment",), "unknown granularity 'elment'; .* did you mean 'element'"),
        (("n:m",), "is a placeholder: write the numbers, such as '2:4'"),
        (("4:2",), "must keep fewer than all"),
        (("4:4",), "must keep fewer than all"),
        (("0:4",), "unknown granularity '0:4'"),
        (("2:4:8",), "unknown granularity"),
        ((None,), "unknown granularity None"),
        (("block",), r"'block' needs block_size=\(out, in\)"),
        (("row", (1, 2)), "'row' takes no block_size"),
        (("2:4", (1, 2)), "'2:4' takes no block_size"),
        (("block", (0, 4)), r"two positive ints \(out, in\), got \(0, 4\)"),
        (("block", (4.0, 4)), "two positive ints"),
        (("block", (True, 4)), "two positive ints"),
        (("block", 4), "two positive ints"),
        (("block", (4,)), "two positive ints"),
        (("panel",), r"'panel' needs block_size=\(out, in\), such as \(32, 2\); 'panel\(32,2\)' is short"),
        (("panel32x2",), r"unknown granularity 'panel32x2'; .*'panel\(32,2\)'"),
        (("panel", (32, 0)), "two positive ints"),
        (
            ("panel", (32, 2), 33),
            "round_to must be a positive multiple of the 2 columns of a unit",
        ),
        (("panel", (32, 2), 0), "round_to must be a positive multiple of the 2 columns .* got 0"),
        (("panel", (32, 2), 32.0), "round_to must be a positive multiple"),
        (("panel", (32, 3)), "such as 30, got 64, the default; pass another"),
        (("panel", (32, 2), 2**21), "round_to must be at most 1048576 columns"),
        (("block", (32, 2), 32), "'block' takes no round_to; only 'panel' does, got 32"),
        (("element", None, 32), "'element' takes no round_to"),
    ],
)
def test_what_it_does_not_know_is_refused(arguments: tuple[Any, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_granularity(*arguments)
