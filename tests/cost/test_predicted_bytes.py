"""Predicted sizes: what is counted of a mask, and the bytes of the packed weight that follow from it."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from sparsebert.cost.mask_statistics import MaskStatistics
from sparsebert.cost.work import estimate_work
from sparsebert_kernels import formats
from tests.planning.masks import dead_rows, random_mask


@pytest.mark.parametrize(
    ("mask_of", "dtype"),
    [
        (lambda: random_mask(0.1), torch.float32),
        (lambda: random_mask(0.1), torch.bfloat16),
        (lambda: random_mask(0.5), torch.float32),
        (lambda: random_mask(0.02, 3072), torch.float32),
        (lambda: random_mask(0.1, height=8), torch.bfloat16),
        (lambda: dead_rows(0.2), torch.bfloat16),
    ],
    ids=["90%", "90% bf16", "50%", "98%", "8x1 bf16", "dead rows bf16"],
)
def test_predicted_bytes_are_those_of_the_packed_weight(
    mask_of: Callable[[], Tensor], dtype: torch.dtype
) -> None:
    mask = mask_of()
    weight = torch.randn(mask.shape).to(dtype)
    for work in estimate_work(MaskStatistics.of(mask), dtype, formats.ANY_MASK):
        packed = formats.pack(weight, mask, format=work.format, **work.options)
        assert work.nbytes == pytest.approx(packed.nbytes, rel=0.05), work


@pytest.mark.parametrize("shape", [(1, 1), (7, 5), (48, 40), (17, 300)])
def test_mask_statistics_count_what_they_say(shape: tuple[int, int]) -> None:
    mask = torch.rand(shape) < 0.2
    statistics = MaskStatistics.of(mask)
    assert (statistics.rows, statistics.columns, statistics.kept) == (*shape, int(mask.sum()))
    assert statistics.live_rows == int(mask.any(1).sum())
    assert statistics.live_columns == int(mask.any(0).sum())
    for height, vectors in statistics.vectors.items():
        packed = formats.pack(torch.ones(shape), mask, format="vector", vector_rows=height)
        assert vectors == len(packed.vectors()[0])
