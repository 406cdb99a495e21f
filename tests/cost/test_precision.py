"""Precisions below a layer's dtype: which a tolerance allows, and what they cost."""

from __future__ import annotations

import pytest
import torch

from sparsebert.cost import cpu_cost
from sparsebert.cost.candidates import format_candidates, stored_dtype
from sparsebert.cost.mask_statistics import MaskStatistics, RowPanelStatistics
from sparsebert.cost.precision import lower_precisions, require_tolerance
from sparsebert.cost.work import estimate_row_panel_work
from sparsebert_kernels.formats import RowPanelSparse

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("dtype", "tolerance", "precisions"),
    [
        (torch.float32, "fp32", ()),
        (torch.float32, "bf16", ("bf16",)),
        (torch.float32, "int8", ("bf16", "int8")),
        (torch.float16, "bf16", ("bf16",)),
        (torch.bfloat16, "bf16", ()),
        (torch.bfloat16, "int8", ("int8",)),
        (torch.float64, "int8", ()),
    ],
)
def test_what_a_tolerance_allows(dtype: torch.dtype, tolerance: str, precisions: tuple[str, ...]) -> None:
    require_tolerance(tolerance)
    assert lower_precisions(dtype, tolerance) == precisions


def test_what_is_stored() -> None:
    assert stored_dtype(torch.float32, "cpu", "bf16") == torch.bfloat16
    assert stored_dtype(torch.float32, "cpu", "int8") == torch.int8
    assert stored_dtype(torch.float32, "cuda", "bf16") == torch.float32
    assert stored_dtype(torch.bfloat16, "cpu", "bf16") == torch.bfloat16


@pytest.mark.parametrize(("dtype", "block"), [(torch.bfloat16, (32, 2)), (torch.int8, (16, 4))])
def test_row_panels_are_estimated_as_they_are_packed(dtype: torch.dtype, block: tuple[int, int]) -> None:
    mask = torch.rand(96 // block[0], 160 // block[1]) < 0.2
    mask = mask.repeat_interleave(block[0], 0).repeat_interleave(block[1], 1)
    panels = RowPanelStatistics.of(mask, dtype)
    for work in estimate_row_panel_work(MaskStatistics.of(mask), panels):
        assert work.block is not None
        packed = RowPanelSparse.from_dense(torch.randn(96, 160), mask, block=work.block, dtype=dtype)
        assert work.stored == packed.values.numel()
        assert abs(work.nbytes - packed.nbytes) <= 0.05 * packed.nbytes


@pytest.mark.parametrize("precision", ["bf16", "int8"])
def test_built_in_costs_cover_what_runs(precision: str) -> None:
    costs = cpu_cost.built_in(torch.float32, precision)
    assert costs.keys() == set(cpu_cost.runnable(torch.float32, precision))
    assert all(kind.endswith(f" {precision}") for kind in costs)


def test_the_dense_layer_is_that_of_the_fastest_allowed_precision() -> None:
    mask = torch.rand(768, 768) < 0.5
    choice = format_candidates(mask, torch.float32, CPU, 128, tolerance="bf16")
    plain = format_candidates(mask, torch.float32, CPU, 128)
    assert not {work.precision for work in plain.candidates} - {""}
    seconds = [choice.predicted(work) or 0.0 for work in choice.candidates if work.format == "dense"]
    assert choice.predicted(choice.dense) == min(seconds)
