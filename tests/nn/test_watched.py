"""What a native description compares with the present state in every call."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from sparsebert.nn.watched import COMPARED_WHOLE, SAMPLED, Watched

KEPT = 8 * COMPARED_WHOLE


def watched(tensor: Tensor) -> Watched:
    return Watched([nn.Identity()], [tensor], [])


@pytest.mark.parametrize("shape", [(KEPT,), (KEPT // 64, 64)], ids=["kept weights", "a matrix"])
def test_a_weight_is_sampled(shape: tuple[int, ...]) -> None:
    """The kept weights of BERT-base, compared as a whole, took longer than the native call."""
    assert watched(torch.randn(shape))._sampled.numel() <= SAMPLED + 1


@pytest.mark.parametrize("size", [1, 3072, COMPARED_WHOLE])
def test_every_value_of_a_bias_is_compared(size: int) -> None:
    bias = torch.zeros(size)
    description = watched(bias)
    assert description.is_current()
    bias.data[size // 2] = 1
    assert not description.is_current()


def test_a_new_set_of_kept_weights_is_noticed() -> None:
    weights = torch.randn(KEPT)
    description = watched(weights)
    weights.data *= 2
    assert not description.is_current()
