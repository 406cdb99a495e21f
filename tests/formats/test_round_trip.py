"""What goes into a format comes out again: the kept weights, exactly, and nothing of the masked ones."""

from __future__ import annotations

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given

from sparsebert_kernels import formats
from tests.formats.matrices import DTYPES, matrices, options, values

FORMATS = sorted(formats.ANY_MASK)
# These hold positions, the others numbers alone: there, a kept weight of exactly zero reads as pruned.
HOLD_POSITIONS = ("element", "csr", "bitmap")


@pytest.mark.parametrize("name", FORMATS)
class TestRoundTrip:
    @given(st.data())
    def test_to_dense_gives_the_kept_weights_and_zeros(self, name: str, data: st.DataObject) -> None:
        matrix = data.draw(matrices())
        packed = formats.pack(matrix.weight, matrix.mask, format=name, **data.draw(options(name)))
        dense = packed.to_dense()
        assert dense.dtype == matrix.weight.dtype
        assert torch.equal(dense, matrix.dense)
        assert (packed.shape, packed.dtype) == (tuple(matrix.weight.shape), matrix.weight.dtype)

    @given(st.data())
    def test_kept_gives_the_mask(self, name: str, data: st.DataObject) -> None:
        matrix = data.draw(matrices())
        packed = formats.pack(matrix.weight, matrix.mask, format=name, **data.draw(options(name)))
        whole = name in HOLD_POSITIONS or getattr(packed, "aligned", False)
        expected = matrix.mask if whole else matrix.dense != 0
        assert torch.equal(packed.kept(), expected)
        assert packed.nnz == expected.sum()

    @given(st.data())
    def test_nothing_masked_is_stored(self, name: str, data: st.DataObject) -> None:
        """Zero times infinity is NaN, so a masked weight is left out, never multiplied."""
        matrix = data.draw(matrices())
        packed = formats.pack(matrix.weight, matrix.mask, format=name, **data.draw(options(name)))
        stored = values(packed)
        assert stored.isfinite().all()
        assert torch.equal(stored[stored != 0].sort().values, matrix.dense[matrix.dense != 0].sort().values)

    @pytest.mark.parametrize("dtype", DTYPES, ids=str)
    def test_without_a_mask_the_zeros_of_the_weight_are_pruned(self, name: str, dtype: torch.dtype) -> None:
        weight = torch.tensor([[0.0, 1.5, -0.0], [torch.nan, 0.0, 2.0]], dtype=dtype)
        packed = formats.pack(weight, format=name)
        torch.testing.assert_close(packed.to_dense(), weight, rtol=0, atol=0, equal_nan=True)
        assert torch.equal(packed.kept(), torch.tensor([[False, True, False], [True, False, True]]))

    def test_a_parameter_is_packed_by_value(self, name: str) -> None:
        parameter = torch.nn.Parameter(torch.randn(9, 11))
        before = parameter.detach().clone()
        packed = formats.pack(parameter, torch.rand(9, 11) < 0.5, format=name)
        assert not packed.values.requires_grad
        dense = packed.to_dense()
        with torch.no_grad():
            parameter.zero_()
        assert torch.equal(packed.to_dense(), dense)
        assert torch.equal(dense, torch.where(packed.kept(), before, 0))

    def test_replace_keeps_the_structure(self, name: str) -> None:
        packed = formats.pack(torch.randn(9, 11), torch.rand(9, 11) < 0.5, format=name)
        same = packed.replace()
        assert (same.shape, same.geometry()) == (packed.shape, packed.geometry())
        assert torch.equal(same.to_dense(), packed.to_dense())
        if not packed.values.is_mkldnn:
            assert torch.equal(packed.replace(values=packed.values * 2).to_dense(), packed.to_dense() * 2)


class TestBlocks:
    @pytest.mark.parametrize("block", [(4, 1), (16, 16), (32, 32)], ids=str)
    @pytest.mark.parametrize("vector_rows", [2, 4])
    def test_are_runs_of_vectors(self, block: tuple[int, int], vector_rows: int) -> None:
        """16x16 and 32x32 blocks need no format of their own: vectors hold them without a wasted value."""
        rows, columns = block
        blocks = torch.rand(3, 4) < 0.5
        mask = blocks.repeat_interleave(rows, 0).repeat_interleave(columns, 1)
        packed = formats.VectorSparse.from_dense(torch.randn(mask.shape), mask, vector_rows=vector_rows)
        assert packed.aligned
        assert torch.equal(packed.kept(), mask)
        assert int(packed.starts[-1]) * vector_rows == mask.sum()


def test_a_vector_mask_that_is_not_aligned_is_said_to_be_so() -> None:
    mask = torch.zeros(8, 3, dtype=torch.bool)
    mask[1:5, 1] = True
    assert not formats.VectorSparse.from_dense(torch.ones(8, 3), mask).aligned
