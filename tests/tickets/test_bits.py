"""The bit codec: a round trip for every mask, the layout of ``numpy.packbits``, no damaged bits."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sparsebert.tickets.bits import pack_bits, packed_bytes, unpack_bits


@given(
    shape=st.lists(st.integers(1, 17), min_size=1, max_size=2),
    density=st.floats(0, 1),
    seed=st.integers(0, 99),
)
def test_round_trip(shape: list[int], density: float, seed: int) -> None:
    mask = torch.rand(shape, generator=torch.Generator().manual_seed(seed)) < density
    bits = pack_bits(mask)
    assert bits.nbytes == packed_bytes(shape) == math.ceil(mask.numel() / 8)
    assert torch.equal(unpack_bits(bits, shape), mask)
    assert torch.equal(unpack_bits(bits.numpy(), shape), mask)


def test_layout_is_row_major_with_the_first_weight_in_the_highest_bit() -> None:
    mask = torch.tensor([[True, False, False, False, True], [False, True, False, False, True]])
    assert pack_bits(mask).tolist() == [0b10001010, 0b01000000]


def test_non_contiguous_masks_are_packed_by_their_values() -> None:
    mask = torch.rand(5, 7) < 0.5
    assert torch.equal(unpack_bits(pack_bits(mask.T), (7, 5)), mask.T)


@pytest.mark.parametrize(
    ("bits", "message"),
    [
        (np.zeros(1, np.uint8), r"is packed as uint8 \[1\]; a mask of shape \[2, 5\] needs uint8 \[2\]"),
        (np.zeros(2, np.int8), r"is packed as int8 \[2\]"),
        (np.zeros((1, 2), np.uint8), r"is packed as uint8 \[1, 2\]"),
        (np.array([0, 1], np.uint8), "has bits set beyond its last weight"),
        (np.array([0, 1 << 5], np.uint8), "has bits set beyond its last weight"),
    ],
    ids=["too short", "dtype", "dimensions", "last bit", "first bit of the padding"],
)
def test_damaged_bits_are_refused_by_name(bits: np.ndarray, message: str) -> None:
    with pytest.raises(ValueError, match=f"a.weight {message}"):
        unpack_bits(torch.from_numpy(bits), (2, 5), "a.weight")
