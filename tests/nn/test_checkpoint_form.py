"""The checkpoint form of a sparse matrix: a lossless round trip, and refusals of everything else."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sparsebert.nn.checkpoint_form import BITS, VALUES, stored_weight, to_stored
from sparsebert.nn.sparse_linear import SparseLinear, as_stored
from sparsebert.tickets.bits import pack_bits, unpack_bits

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


@given(
    rows=st.integers(1, 9),
    columns=st.integers(1, 17),
    density=st.floats(0, 1),
    dtype=st.sampled_from(DTYPES),
    seed=st.integers(0, 99),
)
def test_there_and_back(rows: int, columns: int, density: float, dtype: torch.dtype, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(rows, columns, generator=generator).to(dtype)
    mask = torch.rand(rows, columns, generator=generator) < density
    stored = to_stored(weight, mask)
    assert stored[VALUES].dtype == dtype
    unpacked = unpack_bits(stored[BITS], (rows, columns))
    assert torch.equal(unpacked, mask)
    assert torch.equal(stored_weight(stored[VALUES], unpacked), weight * mask)


def test_values_lie_in_row_order() -> None:
    weight = torch.arange(1.0, 11).view(2, 5)
    mask = torch.tensor([[True, False, False, False, True], [False, True, False, False, True]])
    stored = to_stored(weight, mask)
    assert torch.equal(stored[BITS], pack_bits(mask))
    assert stored[VALUES].tolist() == [1, 5, 7, 10]


def test_pruned_weights_are_not_looked_at() -> None:
    weight = torch.tensor([[1.0, float("nan")], [float("inf"), 2.0]])
    stored = to_stored(weight, torch.eye(2, dtype=torch.bool))
    mask = unpack_bits(stored[BITS], (2, 2))
    assert torch.equal(stored_weight(stored[VALUES], mask), torch.diag(torch.tensor([1.0, 2.0])))


@pytest.mark.parametrize("values", [torch.ones(2), torch.ones(4), torch.ones(3, 1)])
def test_every_kept_weight_has_a_value(values: torch.Tensor) -> None:
    mask = torch.tensor([[True, True], [True, False]])
    with pytest.raises(ValueError, match="keeps 3 weights, but the values have shape"):
        stored_weight(values, mask)


class TestLayers:
    @pytest.fixture
    def layer(self) -> SparseLinear:
        mask = torch.rand(8, 16) < 0.5
        return SparseLinear(torch.randn(8, 16), mask, torch.randn(8))

    def test_say_it_where_they_are_asked_to(self, layer: SparseLinear) -> None:
        with as_stored():
            assert list(layer.state_dict()) == [BITS, VALUES, "bias"]
        assert list(layer.state_dict()) == ["weight", "bias"]

    def test_load_it_as_they_load_dense_weights(self, layer: SparseLinear) -> None:
        with as_stored():
            state = layer.state_dict()
        other = SparseLinear(2 * layer.weight, layer.mask, torch.zeros(8))
        assert not any(other.load_state_dict(state))
        assert torch.equal(other.weight, layer.weight)

    @pytest.mark.parametrize("lost", [BITS, VALUES])
    def test_half_of_it_is_no_weight(self, layer: SparseLinear, lost: str) -> None:
        with as_stored():
            state = layer.state_dict()
        del state[lost]
        with pytest.raises(RuntimeError, match=r'Missing key\(s\) in state_dict: "weight"'):
            layer.load_state_dict(state)

    def test_of_another_shape_it_is_refused(self, layer: SparseLinear) -> None:
        with as_stored():
            state = SparseLinear(torch.randn(8, 32), bias=torch.zeros(8)).state_dict()
        with pytest.raises(
            RuntimeError,
            match=r"the mask is packed as uint8 \[32\]; a mask of shape \[8, 16\] needs uint8 \[16\]",
        ):
            layer.load_state_dict(state)
