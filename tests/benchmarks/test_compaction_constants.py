"""The benchmark of what ``compact_`` chooses by measures the layers that it makes."""

import pytest
import torch
from torch.nn import functional as F

from benchmarks.compaction_constants import attention, copying, rectangle, splitting
from sparsebert.compaction.heads import HeadGroup


def test_a_layer_of_that_many_live_rows_and_columns():
    layer, x = rectangle(12, 8, 5, 3), torch.randn(4, 8)
    torch.testing.assert_close(layer(x), F.linear(x, layer.whole(layer.weight), layer.bias))
    assert layer.is_sound()


@pytest.mark.parametrize(
    "groups", [[HeadGroup((0, 1), 4, 4)], [HeadGroup((0,), 2, 3), HeadGroup((1,), 4, 4)]]
)
def test_an_attention_in_groups(groups):
    layer = attention(8, groups)
    assert layer(torch.randn(2, 5, 8))[0].shape == (2, 5, 8)
    assert layer.groups == tuple(groups)


def test_figures_come_out():
    assert len(copying(32, 16, 8, seconds=0.01)) == 2
    assert splitting(96, 1, 4, 16, seconds=0.01) > 0
