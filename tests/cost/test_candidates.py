"""Format candidates of a layer, for CPUs and for GPUs known by their figures alone."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from sparsebert.cost import candidates, gpu_roofline
from sparsebert.cost.candidates import format_candidates, preferred, stored_dtype
from sparsebert.cost.gpu_roofline import KNOWN
from sparsebert_kernels import formats

H200 = KNOWN["h200"]


def blocks(rows: int, columns: int, height: int, width: int, density: float = 0.1) -> Tensor:
    """Every row of blocks keeps the same share of them."""
    kept = round(density * columns / width)
    order = torch.rand(rows // height, columns // width).argsort(1)
    return (order < kept).repeat_interleave(height, 0).repeat_interleave(width, 1)


class TestOnAGpu:
    @pytest.mark.parametrize("size", [(128, 64), (64, 64), (64, 8), (32, 64)], ids=str)
    def test_blocks_run_as_the_blocks_they_are(self, size: tuple[int, int]) -> None:
        choice = format_candidates(blocks(3072, 768, *size), torch.bfloat16, H200, 4096)
        best = choice.candidates[0]
        assert best.format == "panel"
        assert best.block is not None
        assert best.stored <= 0.2 * 3072 * 768
        assert choice.predicted_speedup(best) > 1.5

    def test_elements_run_dense(self) -> None:
        mask = torch.rand(3072, 768) < 0.1
        choice = format_candidates(mask, torch.bfloat16, H200, 4096)
        assert choice.candidates[0] == choice.dense

    def test_rows_that_share_their_columns_become_column_panels(self) -> None:
        # Some rows and some columns matter much more than others, as in tickets by magnitude.
        rows, columns = (torch.randn(size).mul(0.8).exp() for size in (3072, 768))
        magnitudes = torch.randn(3072, 768).abs() * rows[:, None] * columns
        mask = magnitudes > magnitudes.flatten().kthvalue(int(0.97 * magnitudes.numel())).values
        choice = format_candidates(mask, torch.bfloat16, H200, 16384)
        assert choice.candidates[0].format == "column_panel"
        assert choice.predicted_speedup(choice.candidates[0]) > 1.2

    def test_dead_rows_are_left_out(self) -> None:
        mask = torch.zeros(3072, 768, dtype=torch.bool)
        mask[torch.randperm(3072)[:300]] = True
        assert format_candidates(mask, torch.bfloat16, H200, 16384).candidates[0].format == "compact"

    @pytest.mark.parametrize("format", formats.FORMATS)
    def test_any_format_may_be_asked_for_by_name(self, format: str) -> None:
        choice = format_candidates(blocks(256, 256, 16, 16), torch.bfloat16, H200, 128, format=format)
        assert bool(choice.candidates) == (format in {work.format for work in choice.candidates})

    def test_training_takes_blocks_that_hold_nothing_but_kept_weights(self) -> None:
        choice = format_candidates(blocks(256, 256, 32, 16, 0.25), torch.bfloat16, H200, 4096, trainable=True)
        sizes = {work.block for work in choice.candidates if work.format == "panel"}
        assert sizes == {(height, width) for height in (16, 32) for width in (8, 16)}

    def test_training_of_elements_is_left_to_the_format_of_elements(self) -> None:
        mask = torch.rand(256, 256) < 0.1
        (only,) = format_candidates(mask, torch.bfloat16, H200, 4096, trainable=True).candidates
        assert only.format == "element"


class TestPreferred:
    """What a layer takes that is moved, without measuring."""

    def test_follows_the_device(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(gpu_roofline, "present", lambda device: H200)
        mask = blocks(3072, 768, 64, 64)
        on_gpu = preferred(mask, torch.bfloat16, torch.device("cuda"), 4096)
        assert (on_gpu.format, on_gpu.block is not None) == ("panel", True)
        on_cpu = preferred(mask, torch.bfloat16, torch.device("cpu"), 4096)
        assert on_cpu.format != "panel"

    @pytest.mark.parametrize("device", ["cpu", "cuda"])
    def test_is_the_first_of_the_format_candidates(
        self, device: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(gpu_roofline, "present", lambda device: H200)
        mask = blocks(256, 256, 32, 32)
        arguments = mask, torch.float32, torch.device(device), 128
        assert preferred(*arguments) == format_candidates(*arguments).candidates[0]


@pytest.mark.parametrize(
    ("dtype", "device", "stored"),
    [
        (torch.float32, "cpu", torch.float32),
        (torch.bfloat16, "cpu", torch.bfloat16),
        (torch.float16, "cpu", torch.float32),
        (torch.float16, "cuda", torch.float16),
        (torch.float64, "cuda", torch.float32),
    ],
)
def test_stored_dtype(dtype: torch.dtype, device: str, stored: torch.dtype) -> None:
    assert stored_dtype(dtype, device) == stored


def test_candidates_are_sorted_by_predicted_time() -> None:
    choice = format_candidates(blocks(768, 768, 64, 64), torch.bfloat16, H200, 4096)
    seconds = [choice.costs.seconds(work) for work in choice.candidates]
    assert seconds == sorted(seconds)
    assert all(work.nbytes <= choice.dense.nbytes for work in choice.candidates)
    assert math.isclose(choice.predicted_speedup(choice.dense), 1)
    assert candidates.GPU_FORMATS[:2] == ("dense", "compact")
