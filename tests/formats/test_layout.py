"""The order in which the formats store things, on examples small enough to do by hand."""

from __future__ import annotations

import itertools

import hypothesis.strategies as st
import torch
from hypothesis import given
from torch import Tensor

from sparsebert_kernels.formats import BitmapSparse, CompactDense, CsrSparse, ElementSparse, VectorSparse
from sparsebert_kernels.formats.base import SLACK_BYTES, UNIT
from tests.formats.matrices import matrices, options, values

# Kept weights are numbered in the order of reading; a dot is pruned.
#          columns 0..2   3..4
#   row 0     1 . 2   |   . 3
#   row 1     . . .   |   . .
#   row 2     . 4 .   |   5 6
#   row 3     . 7 8   |   . .
#   row 4     9 . .   |   . .     in a row block of its own
DENSE = torch.tensor([
    [1, 0, 2, 0, 3],
    [0, 0, 0, 0, 0],
    [0, 4, 0, 5, 6],
    [0, 7, 8, 0, 0],
    [9, 0, 0, 0, 0],
])  # fmt: skip


def _stored(tensor: Tensor, count: int) -> list[int]:
    """The first ``count`` entries; the rest, which only kernels may read, is zero."""
    assert not tensor[count:].any()
    return tensor[:count].int().tolist()


class TestElement:
    def test_fp32_stores_weights_one_by_one(self) -> None:
        packed = ElementSparse.from_dense(DENSE.float(), block_rows=4, block_columns=3)
        # Row block 0: columns 0..2, then 3..4; row block 1: the same. Inside, rows by count, then by number.
        assert _stored(packed.values, 9) == [4, 1, 2, 7, 8, 3, 5, 6, 9]
        assert _stored(packed.columns, 9) == [1, 0, 2, 1, 2, 1, 0, 1, 0]
        assert packed.rows.tolist() == [1, 2, 0, 3, 0, 2, 0]
        # (weights a row keeps, rows): block 0 has one empty row, one row of 1, two of 2; block 1 a 1 and a 2.
        assert packed.groups.tolist() == [[0, 1], [1, 1], [2, 2], [1, 1], [2, 1], [1, 1]]
        # Where each block begins in groups, rows and values; the last block, row 4's columns 3..4, is empty.
        assert packed.blocks.tolist() == [[0, 0, 0], [3, 4, 5], [5, 6, 8], [6, 7, 9], [6, 7, 9]]

    def test_bf16_stores_pairs_and_fills_them_up(self) -> None:
        packed = ElementSparse.from_dense(DENSE.bfloat16(), block_rows=4, block_columns=3)
        # An odd count repeats its last column with value zero, so 4 and 1 2 and 7 8 are groups of one pair.
        assert _stored(packed.values, 12) == [1, 2, 4, 0, 7, 8, 3, 0, 5, 6, 9, 0]
        assert _stored(packed.columns, 12) == [0, 2, 1, 1, 1, 2, 1, 1, 0, 1, 0, 0]
        assert packed.rows.tolist() == [1, 0, 2, 3, 0, 2, 0]
        assert packed.groups.tolist() == [[0, 1], [1, 3], [1, 2], [1, 1]]
        assert packed.blocks.tolist() == [[0, 0, 0], [2, 4, 6], [3, 6, 10], [4, 7, 12], [4, 7, 12]]

    @given(st.data())
    def test_holds_for_any_matrix(self, data: st.DataObject) -> None:
        matrix = data.draw(matrices())
        packed = ElementSparse.from_dense(matrix.weight, matrix.mask, **data.draw(options("element")))
        unit = UNIT[packed.dtype]
        rows, columns = packed.shape
        column_blocks = -(-columns // packed.block_columns)
        bounds = packed.blocks.tolist()
        assert len(bounds) == -(-rows // packed.block_rows) * column_blocks + 1
        assert bounds[0] == [0, 0, 0]
        assert bounds[-1] == [len(packed.groups), len(packed.rows), packed.values.numel() - SLACK_BYTES]
        for block, (begin, end) in enumerate(itertools.pairwise(bounds)):
            (group, row, value), (next_group, next_row, next_value) = begin, end
            lengths = packed.groups[group:next_group, 0].tolist()
            assert lengths == sorted(set(lengths)), "rows by count, one group a count"
            sizes = packed.groups[group:next_group, 1].tolist()
            assert sum(sizes) == next_row - row
            assert sum(n * size for n, size in zip(lengths, sizes, strict=True)) * unit == next_value - value
            listed = packed.rows[row:next_row].tolist()
            first = block // column_blocks * packed.block_rows
            if block % column_blocks == 0:
                assert sorted(listed) == list(range(min(packed.block_rows, rows - first))), (
                    "where the bias is"
                )
            else:
                assert 0 not in lengths, "nothing to add"
        # Inside a row the columns rise; only the padding of a bf16 pair repeats one.
        row_of, column_of = packed.coordinates()
        same_row = row_of[1:] == row_of[:-1]
        steps = torch.diff(column_of)
        within = same_row & (column_of[1:] // packed.block_columns == column_of[:-1] // packed.block_columns)
        assert (steps[within] >= (0 if unit == 2 else 1)).all()
        assert not values(packed)[: row_of.numel()][1:][within & (steps == 0)].any()


class TestVector:
    DENSE = torch.tensor([
        [1, 0, 2, 0, 3],
        [4, 0, 5, 0, 0],
        [0, 6, 0, 0, 0],
        [0, 7, 0, 0, 0],
        [0, 8, 0, 0, 9],
    ])  # fmt: skip

    def test_fp32_stores_vectors_one_by_one(self) -> None:
        packed = VectorSparse.from_dense(self.DENSE.float(), vector_rows=2, block_rows=4, block_columns=3)
        # Row block, column block, panel of two rows, column; the last panel has one row and a row of zeros.
        vectors = [[1, 4], [2, 5], [6, 7], [3, 0], [8, 0], [9, 0]]
        assert packed.values[:6].int().tolist() == vectors
        assert not packed.values[6:].any()
        assert _stored(packed.columns, 6) == [0, 2, 1, 1, 1, 1]
        # Two panels in each of the 2 x 2 blocks, and the end.
        assert packed.starts.tolist() == [0, 2, 3, 4, 4, 5, 5, 6, 6]
        assert not packed.aligned

    def test_bf16_stores_pairs_of_vectors_value_by_value(self) -> None:
        packed = VectorSparse.from_dense(self.DENSE.bfloat16(), vector_rows=2, block_rows=4, block_columns=3)
        # Two columns a unit, the two values of a row side by side: the operand of a two-element dot product.
        units = [[[1, 2], [4, 5]], [[6, 0], [7, 0]], [[3, 0], [0, 0]], [[8, 0], [0, 0]], [[9, 0], [0, 0]]]
        assert packed.values[:5].int().tolist() == units
        assert not packed.values[5:].any()
        assert _stored(packed.columns, 10) == [0, 2, 1, 1, 1, 1, 1, 1, 1, 1]
        assert packed.starts.tolist() == [0, 1, 2, 3, 3, 4, 4, 5, 5]

    def test_columns_past_32767_are_unsigned(self) -> None:
        weight = torch.zeros(2, 65536)
        weight[:, -1] = 1
        packed = VectorSparse.from_dense(weight, vector_rows=2, block_columns=65536)
        assert packed.columns.dtype == torch.int16
        assert int(packed.columns[0]) & 0xFFFF == 65535
        assert torch.equal(packed.to_dense(), weight)


class TestCompact:
    def test_stores_the_live_rectangle(self) -> None:
        packed = CompactDense.from_dense(DENSE.float(), DENSE > 4)
        assert packed.live_rows.tolist() == [2, 3, 4]
        assert packed.live_columns.tolist() == [0, 1, 2, 3, 4]
        packed = CompactDense.from_dense(DENSE.float(), DENSE > 6)
        assert packed.live_rows.tolist() == [3, 4]
        assert packed.live_columns.tolist() == [0, 1, 2]
        assert values(packed).int().tolist() == [[0, 7, 8], [9, 0, 0]]


class TestCsr:
    def test_stores_what_torch_does(self) -> None:
        packed = CsrSparse.from_dense(DENSE.float())
        torchs = DENSE.float().to_sparse_csr()
        assert torch.equal(packed.crow_indices.long(), torchs.crow_indices())
        assert torch.equal(packed.col_indices.long(), torchs.col_indices())
        assert torch.equal(packed.values, torchs.values())


def test_bitmap_offsets_count_the_weights_of_the_row_before_each_tile() -> None:
    mask = torch.zeros(2, 130, dtype=torch.bool)
    mask[0, [3, 63, 64, 129]] = mask[1, [70, 128]] = True
    packed = BitmapSparse.from_dense(torch.ones(2, 130), mask)
    assert packed.offsets.tolist() == [[0, 2, 3], [0, 0, 1]]
    assert packed.starts.tolist() == [0, 4]
