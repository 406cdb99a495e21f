"""The layers to pack: their size before and after compaction."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from sparsebert.planning.target_layers import TargetLayer


@pytest.mark.parametrize(("configured", "shrinkage"), [(None, 1.0), (48, 4.0)])
def test_shrinkage_is_the_weights_before_over_those_after_compaction(
    configured: int | None, shrinkage: float
) -> None:
    linear = nn.Linear(4, 3)
    mask = torch.ones(3, 4, dtype=torch.bool)
    layer = TargetLayer("key", "name", linear, mask, configured=configured)
    assert layer.shrinkage == shrinkage
    assert layer.dense_nbytes == shrinkage * linear.weight.nbytes
