"""Which packed formats could serve a layer on a device, the one with the least predicted time first."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from sparsebert.cost import gpu_roofline
from sparsebert.cost.cpu_cost import cost_model
from sparsebert.cost.work import (
    BlockStatistics,
    MaskStatistics,
    WorkEstimate,
    column_panel_works,
    estimate_work,
    panel_works,
)
from sparsebert_kernels import formats
from sparsebert_kernels.cuda import backend

# Dtype of a layer on the CPU -> dtype its packed values are stored in.
STORED = {
    torch.float32: torch.float32,
    torch.bfloat16: torch.bfloat16,
    torch.float16: torch.float32,
    torch.float64: torch.float32,
}
# Formats that a GPU computes without making the matrix dense for each call.
GPU_FORMATS = ("dense", "compact", *backend.FORWARD)


LEAST_SPARSITY_OF_COLUMN_PANELS = 0.93


def stored_dtype(dtype: torch.dtype, device_type: str) -> torch.dtype:
    """Dtype in which a layer of ``dtype`` stores its kept weights: GPUs compute float16 as it is."""
    return torch.float16 if dtype == torch.float16 and device_type == "cuda" else STORED[dtype]


class CostModel(Protocol):
    """Predicts the seconds of a layer for one device, dtype and number of tokens."""

    def supports(self, work: WorkEstimate) -> bool: ...
    def seconds(self, work: WorkEstimate) -> float: ...


@dataclass(frozen=True)
class Choice:
    """What could serve a layer.

    candidates  what pays or was asked for; never empty unless the layer is to be trained
    dense       the work of the dense layer
    blocks      where the device runs blocks
    """

    statistics: MaskStatistics
    blocks: BlockStatistics | None
    costs: CostModel
    dense: WorkEstimate
    candidates: list[WorkEstimate]

    def predicted(self, work: WorkEstimate) -> float | None:
        """Seconds, None where the cost model has no figures."""
        return self.costs.seconds(work) if self.costs.supports(work) else None

    def predicted_speedup(self, work: WorkEstimate) -> float:
        """Over the dense layer. Raises KeyError where the cost model has no figures."""
        return self.costs.seconds(self.dense) / max(self.costs.seconds(work), 1e-12)


def choices(
    mask: Tensor,
    dtype: torch.dtype,
    device: torch.device | gpu_roofline.Device,
    tokens: int,
    *,
    format: str = "auto",
    trainable: bool = False,
    measure: bool = False,
) -> Choice:
    """What could serve a layer of that mask (bool [out, in]) and dtype; ``format`` narrows it to that one.

    ``device`` is one of this machine, or the figures of a GPU that need not be here. ``measure`` lets a CPU's
    costs be measured.
    """
    gpu = isinstance(device, gpu_roofline.Device) or device.type == "cuda"
    stored = stored_dtype(dtype, "cuda" if gpu else "cpu")
    statistics = MaskStatistics.of(mask)
    blocks = BlockStatistics.of(mask) if gpu or format == "panel" else None
    costs: CostModel
    if isinstance(device, gpu_roofline.Device):
        costs = gpu_roofline.Roofline(device, stored, tokens)
    elif gpu:
        costs = gpu_roofline.Roofline(gpu_roofline.present(device), stored, tokens)
    else:
        costs = cost_model(stored, tokens, measure=measure)
    wanted = tuple(formats.FORMATS) if format == "auto" else (format,)
    candidates = list(estimate_work(statistics, stored, wanted))
    if blocks and "panel" in wanted:
        candidates += panel_works(statistics, blocks, stored)
    if "column_panel" in wanted and (format != "auto" or _may_share_columns(gpu, statistics)):
        candidates += column_panel_works(mask, stored)
    (dense,) = estimate_work(statistics, stored, ("dense",))
    if trainable:
        candidates = [work for work in candidates if _can_train(work, statistics, blocks)]
    elif format == "auto":
        candidates = [
            work for work in candidates if costs.supports(work) and _can_pay(work, dense, statistics)
        ]

    def order(work: WorkEstimate) -> tuple[float, int, int]:
        # Where the cost model has no figures, what stores least, in the largest blocks.
        seconds = costs.seconds(work) if costs.supports(work) else math.inf
        return seconds, work.stored, -math.prod(work.block or (1, 1))

    return Choice(statistics, blocks, costs, dense, sorted(candidates, key=order))


def preferred(
    mask: Tensor, dtype: torch.dtype, device: torch.device, tokens: int, *, trainable: bool = False
) -> WorkEstimate:
    """The format that is predicted to be the fastest, without measuring: what a layer that is moved takes."""
    choice = choices(mask, dtype, device, tokens, trainable=trainable)
    return choice.candidates[0]


def _may_share_columns(gpu: bool, statistics: MaskStatistics) -> bool:
    """Whether it is worth looking for rows that need the same columns: in denser masks all rows need all."""
    return gpu and statistics.sparsity >= LEAST_SPARSITY_OF_COLUMN_PANELS


def _can_train(work: WorkEstimate, statistics: MaskStatistics, blocks: BlockStatistics | None) -> bool:
    """Whether what is stored is what is kept: training must not revive a pruned weight."""
    if work.format == "vector" and work.block:
        return statistics.aligned(work.block[0])
    if work.format == "panel" and work.block and blocks:
        return blocks.blocks[work.block] * math.prod(work.block) == statistics.kept
    return work.format == "element"


def _can_pay(work: WorkEstimate, dense: WorkEstimate, statistics: MaskStatistics) -> bool:
    if work == dense:
        return True
    smaller = work.nbytes < dense.nbytes and not statistics.full
    return smaller and (work.format != "compact" or statistics.has_dead_lines)
