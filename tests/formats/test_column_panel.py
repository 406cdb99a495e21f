"""How column panels order and store rows, and what they say a mask comes to."""

from __future__ import annotations

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given

from sparsebert_kernels.formats import ColumnPanelSparse
from sparsebert_kernels.formats.column_panel import union
from tests.formats.matrices import matrices, options

DTYPES = (torch.float32, torch.float16, torch.bfloat16)


class TestStorage:
    def test_of_a_small_matrix(self) -> None:
        weight = torch.zeros(3, 5)
        weight[0, 4], weight[2, 1], weight[2, 4] = 1, 2, 3
        packed = ColumnPanelSparse.from_dense(weight)
        # The fullest row first, the rows that are not there after the last one.
        assert packed.rows[:4].tolist() == [2, 0, 1, 3]
        assert (packed.rows[3:] == 3).all()
        # Columns 1 and 4, and the last of them to fill up the tile; then a tile that is only read ahead.
        assert packed.columns[:3].tolist() == [1, 4, 4]
        assert (packed.columns[2:64] == 4).all()
        assert not packed.columns[64:].any()
        assert packed.starts.tolist() == [0, 1]
        assert packed.values[0, :3, :3].tolist() == [[2, 3, 0], [0, 1, 0], [0, 0, 0]]

    @given(st.data())
    def test_holds_for_any_matrix(self, data: st.DataObject) -> None:
        matrix = data.draw(matrices(dtypes=DTYPES))
        packed = ColumnPanelSparse.from_dense(
            matrix.weight, matrix.mask, **data.draw(options("column_panel"))
        )
        assert torch.equal(packed.to_dense(), matrix.dense)
        rows, columns = packed.shape
        assert packed.rows[packed.rows < rows].sort().values.tolist() == list(range(rows))
        # Fillings repeat a column that some row keeps: a pruned column is never read.
        stored = packed.columns[:-64]
        assert matrix.mask.any(0)[stored.long()].all()
        assert packed.columns.max() < columns


class TestUnion:
    @given(st.data())
    def test_of_a_mask_is_that_of_its_packed_weight(self, data: st.DataObject) -> None:
        matrix = data.draw(matrices())
        settings = data.draw(options("column_panel"))
        packed = ColumnPanelSparse.from_dense(matrix.weight, matrix.mask, **settings)
        assert union(matrix.mask, **settings) == packed.union

    def test_is_everything_for_a_dense_mask_and_nothing_for_an_empty_one(self) -> None:
        assert union(torch.ones(128, 640, dtype=torch.bool)) == 1
        assert union(torch.zeros(128, 640, dtype=torch.bool)) == 0

    def test_finds_rows_that_share_columns(self) -> None:
        """Four kinds of rows, shuffled: panels of one kind need a quarter of the columns."""
        kind = torch.arange(256)[torch.randperm(256)] % 4
        mask = kind[:, None] == torch.arange(1024) // 256
        assert union(mask, row_order="count") > 0.9
        assert union(mask, row_order="greedy") == union(mask) == 0.25

    def test_finds_full_and_empty_rows(self) -> None:
        """Rows of very different density: sorted by it, sparse panels stay sparse."""
        density = torch.rand(512, 1) ** 8
        mask = torch.rand(512, 768) < density * 0.5
        shuffled = torch.rand(512, 768) < 0.5 * density.mean()
        assert union(mask) < 0.7 * union(shuffled)


class TestRefusals:
    @pytest.mark.parametrize("height", [0, 16, 32, 65, 256, -64])
    def test_height(self, height: int) -> None:
        message = f"panel_rows must be 64 or 128, got {height}"
        with pytest.raises(ValueError, match=message):
            ColumnPanelSparse.from_dense(torch.ones(3, 4), panel_rows=height)
        with pytest.raises(ValueError, match=message):
            union(torch.ones(3, 4, dtype=torch.bool), panel_rows=height)

    def test_order(self) -> None:
        with pytest.raises(ValueError, match=r"unknown row order 'gredy'.*did you mean 'greedy'"):
            ColumnPanelSparse.from_dense(torch.ones(3, 4), row_order="gredy")
