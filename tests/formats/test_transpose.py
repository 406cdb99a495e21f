"""``transposed_index``: W.T in element-sparse form, over the values of W."""

from __future__ import annotations

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given
from torch import Tensor

from sparsebert_kernels import formats
from sparsebert_kernels.formats.element import BLOCK_COLUMNS, BLOCK_ROWS
from sparsebert_kernels.formats.transpose import transposed_index
from tests.formats.matrices import matrices, options

TRAINABLE = ("element", "vector")


def _transposed(packed: formats.ElementSparse | formats.VectorSparse, index: list[Tensor]) -> Tensor:
    source, columns, rows, groups, blocks = index
    tensors = {"values": packed.values.flatten()[source], "columns": columns, "rows": rows}
    tensors |= {"groups": groups, "blocks": blocks}
    geometry = {"block_rows": BLOCK_ROWS, "block_columns": BLOCK_COLUMNS}
    return formats.ElementSparse((packed.shape[1], packed.shape[0]), tensors, geometry).to_dense()


@pytest.mark.parametrize("name", TRAINABLE)
class TestTransposedIndex:
    @given(st.data())
    def test_gives_the_transposed_matrix(self, name: str, data: st.DataObject) -> None:
        matrix = data.draw(matrices())
        packed = formats.pack(matrix.weight, matrix.mask, format=name, **data.draw(options(name)))
        index = transposed_index(packed)  # type: ignore[arg-type]
        assert torch.equal(_transposed(packed, index), matrix.dense.t())  # type: ignore[arg-type]

    @given(st.data())
    def test_serves_other_values_as_well(self, name: str, data: st.DataObject) -> None:
        """An optimizer changes the values, zeros among them; the index stays."""
        matrix = data.draw(matrices(dtypes=(torch.float32,)))
        packed = formats.pack(matrix.weight, matrix.mask, format=name, **data.draw(options(name)))
        index = transposed_index(packed)  # type: ignore[arg-type]
        trained = packed.replace(values=packed.values * 3)
        assert torch.equal(_transposed(trained, index), matrix.dense.t() * 3)  # type: ignore[arg-type]

    def test_works_for_more_than_one_block(self, name: str) -> None:
        for shape in ((800, 300), (300, 800)):
            packed = formats.pack(torch.randn(shape), torch.rand(shape) < 0.1, format=name)
            index = transposed_index(packed)  # type: ignore[arg-type]
            assert torch.equal(_transposed(packed, index), packed.to_dense().t())  # type: ignore[arg-type]
