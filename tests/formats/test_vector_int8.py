"""The int8 vectors: what is stored, and what is refused."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sparsebert_kernels import formats, quantization
from sparsebert_kernels.formats import VectorInt8
from tests.formats.matrices import Matrix, matrices

HEIGHTS = st.sampled_from((2, 4, 8))


@given(matrices(), HEIGHTS)
def test_holds_the_rounded_weights(matrix: Matrix, vector_rows: int) -> None:
    packed = formats.pack(matrix.weight, matrix.mask, format="vector_int8", vector_rows=vector_rows)
    assert isinstance(packed, VectorInt8)
    expected = quantization.quantize_rows(matrix.dense)
    stored = packed.quantized()
    assert torch.equal(stored.values, expected.values)
    assert torch.equal(stored.scales, expected.scales)
    assert torch.equal(packed.to_dense(), expected.dequantized())
    assert torch.equal(packed.sums[: matrix.weight.shape[0]], expected.values.sum(1, dtype=torch.int32))


@given(matrices(), HEIGHTS)
def test_keeps_the_mask_of_whole_vectors(matrix: Matrix, vector_rows: int) -> None:
    packed = formats.pack(matrix.weight, matrix.mask, format="vector_int8", vector_rows=vector_rows)
    rows, columns = matrix.mask.shape
    padded = torch.nn.functional.pad(matrix.mask, (0, 0, 0, -rows % vector_rows))
    live = padded.view(-1, vector_rows, columns).any(1).repeat_interleave(vector_rows, 0)[:rows]
    assert packed.aligned == torch.equal(live, matrix.mask)
    assert torch.equal(packed.kept(), matrix.mask if packed.aligned else packed.to_dense() != 0)


def test_padding_reads_no_pruned_column() -> None:
    mask = torch.zeros(4, 9, dtype=torch.bool)
    mask[:, [1, 3, 4, 6, 8]] = True
    packed = VectorInt8.from_dense(torch.randn(4, 9), mask)
    assert packed.starts.tolist() == [0, 2]
    assert packed.columns[:2].tolist() == [[1, 3, 4, 6], [8, 8, 8, 8]]
    assert packed.values[1, :, 1:].count_nonzero() == 0


def test_four_kept_columns_of_four_rows_take_sixteen_bytes_and_their_columns_eight() -> None:
    small, large = (VectorInt8.from_dense(torch.randn(64, columns)) for columns in (256, 512))
    assert large.nbytes - small.nbytes == 64 * 256 + 16 * 256 * 2


def test_survives_copies_and_devices() -> None:
    packed = formats.pack(torch.randn(12, 20), format="vector_int8", limit=3.0)
    for other in (copy.deepcopy(packed), pickle.loads(pickle.dumps(packed)), packed.replace()):
        assert torch.equal(other.to_dense(), packed.to_dense())
        assert other.limit.tolist() == [3.0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"vector_rows": 3}, "vector_rows must be 2, 4 or 8, got 3"),
        ({"limit": 0.0}, r"limit must be a positive finite number, got 0\.0"),
        ({"block_rows": 8}, "unknown option 'block_rows'"),
    ],
)
def test_refuses_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        formats.pack(torch.ones(4, 4), format="vector_int8", **options)


def test_refuses_more_columns_than_sums_can_hold() -> None:
    with pytest.raises(ValueError, match="weight has 65537 columns; this format stores at most 65536"):
        formats.pack(torch.ones(2, 65537), format="vector_int8")


def test_refuses_kept_weights_that_are_not_finite() -> None:
    weight = torch.ones(2, 3)
    weight[1, 1] = torch.inf
    with pytest.raises(ValueError, match="row 1 of the weight has a NaN or infinity"):
        formats.pack(weight, format="vector_int8")
    formats.pack(weight, torch.tensor([[True] * 3, [True, False, True]]), format="vector_int8")
