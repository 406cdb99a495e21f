"""Work estimates: the bytes of the packed weight, and costs that follow from the work."""

from __future__ import annotations

import pytest
import torch

from sparsebert.cost.mask_statistics import BlockStatistics, MaskStatistics
from sparsebert.cost.work import (
    Cost,
    WorkEstimate,
    estimate_column_panel_work,
    estimate_panel_work,
    estimate_work,
    format_label,
    format_options,
)
from sparsebert_kernels import formats


@pytest.mark.parametrize("density", [0.0, 0.1, 1.0])
def test_predicted_bytes_of_panels_are_those_of_the_packed_weight(density: float) -> None:
    mask = torch.rand(200, 150) < density
    for work in estimate_panel_work(MaskStatistics.of(mask), BlockStatistics.of(mask), torch.float32):
        packed = formats.pack(torch.ones(200, 150), mask, format=work.format, **work.options)
        assert work.nbytes == packed.nbytes, work


@pytest.mark.parametrize("density", [0.0, 0.02, 1.0])
def test_predicted_bytes_of_other_gpu_formats_are_those_of_the_packed_weight(density: float) -> None:
    mask = torch.rand(200, 150) < density
    statistics = MaskStatistics.of(mask)
    (bitmap,) = estimate_work(statistics, torch.float32, ("bitmap",))
    assert bitmap.nbytes == formats.pack(torch.ones(200, 150), mask, format="bitmap").nbytes
    for work in estimate_column_panel_work(mask, torch.float32):
        packed = formats.pack(
            torch.ones(200, 150), mask, format=work.format, row_order="count", **work.options
        )
        assert work.nbytes == packed.nbytes, work


def test_a_cost_is_linear_in_tokens_stored_weights_and_lines() -> None:
    work = WorkEstimate("element", stored=1000, lines=30, nbytes=1)
    assert Cost(1.0, 0.01, 0.1).seconds(work, tokens=2) == pytest.approx(1 + 2 * (10 + 3))


@pytest.mark.parametrize(
    ("format", "block", "label", "options"),
    [
        ("element", None, "element", {}),
        ("vector", (4, 1), "vector 4x1", {"vector_rows": 4}),
        ("column_panel", (64, 1), "column_panel 64x1", {"panel_rows": 64}),
        ("panel", (64, 8), "panel 64x8", {"block_size": (64, 8)}),
    ],
)
def test_block_sizes_are_named_and_passed_to_pack(
    format: str, block: tuple[int, int] | None, label: str, options: dict[str, object]
) -> None:
    assert format_label(format, block) == label
    assert format_options(format, block) == options
