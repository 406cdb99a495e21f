"""Mask statistics: the counts that packing the mask confirms."""

from __future__ import annotations

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings

from sparsebert.cost.mask_statistics import BlockStatistics, MaskStatistics
from sparsebert_kernels import formats


def test_counts_of_a_mask() -> None:
    mask = torch.zeros(6, 5, dtype=torch.bool)
    mask[0, 0] = mask[1, 0] = mask[5, 3] = True
    statistics = MaskStatistics.of(mask)
    assert (statistics.rows, statistics.columns, statistics.kept) == (6, 5, 3)
    assert statistics.live_shape == (3, 2)
    assert statistics.vectors == {2: 2, 4: 2, 8: 2}
    assert statistics.sparsity == pytest.approx(0.9)
    assert statistics.has_dead_lines
    assert not statistics.full


def test_aligned_masks_consist_of_whole_vectors() -> None:
    mask = (torch.rand(4, 9) < 0.5).repeat_interleave(4, 0)
    mask[0, 0] = mask[1, 0] = mask[2, 0] = mask[3, 0] = True
    assert [height for height in (2, 4, 8) if MaskStatistics.of(mask).aligned(height)] == [2, 4]
    mask[0, 0] = False
    assert not MaskStatistics.of(mask).aligned(2)
    assert not MaskStatistics.of(torch.ones(3, 2, dtype=torch.bool)).aligned(2)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 300), st.integers(1, 200), st.sampled_from([0.0, 0.02, 0.3, 1.0]), st.integers(0, 99))
def test_block_statistics_are_those_of_the_packed_panels(
    rows: int, columns: int, density: float, seed: int
) -> None:
    mask = torch.rand(rows, columns, generator=torch.Generator().manual_seed(seed)) < density
    statistics = BlockStatistics.of(mask)
    for size, tiles in statistics.tiles.items():
        packed = formats.pack(torch.ones(rows, columns), mask, format="panel", block_size=size)
        assert tiles == int(packed.starts[-1])
        assert statistics.blocks[size] == packed.slots()[0].numel()


@pytest.mark.parametrize("density", [0.03, 0.076, 0.1, 0.5])
def test_blocks_dealt_evenly_are_no_better_than_real_ones_can_be(density: float) -> None:
    spread = BlockStatistics.spread(1536, 384, density)
    for (height, width), kept in spread.blocks.items():
        assert kept * height * width == pytest.approx(density * 1536 * 384, abs=height * width / 2)
        assert kept / (64 // width) <= spread.tiles[height, width] <= kept
