"""The packed formats that could serve a layer on a device, sorted by predicted time."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from sparsebert.cost import gpu_roofline
from sparsebert.cost.cpu_cost import CpuCostModel, cost_model, quick_cost_model, with_lower_precisions
from sparsebert.cost.mask_statistics import BlockStatistics, MaskStatistics, RowPanelStatistics
from sparsebert.cost.precision import DTYPES, LOWEST, lower_precisions
from sparsebert.cost.work import (
    WorkEstimate,
    estimate_column_panel_work,
    estimate_panel_work,
    estimate_row_panel_work,
    estimate_work,
)
from sparsebert_kernels import formats
from sparsebert_kernels.cuda import backend
from sparsebert_kernels.formats import RowPanelSparse

# Dtype of a layer on the CPU -> dtype of its packed values.
STORED = {
    torch.float32: torch.float32,
    torch.bfloat16: torch.bfloat16,
    torch.float16: torch.float32,
    torch.float64: torch.float32,
}
# Formats that a GPU multiplies without unpacking the matrix for each call.
GPU_FORMATS = ("dense", "compact", *backend.FORWARD)
# In denser masks, the rows of a panel together need almost all columns.
LEAST_SPARSITY_OF_COLUMN_PANELS = 0.93


def stored_dtype(dtype: torch.dtype, device_type: str, precision: str = "") -> torch.dtype:
    """Return the dtype in which a layer of ``dtype`` stores its kept weights.

    Only GPUs compute in float16; CPUs store it as float32. A lower ``precision`` is for CPUs alone.
    """
    if device_type == "cpu" and precision in lower_precisions(dtype, LOWEST):
        return DTYPES[precision]
    return torch.float16 if dtype == torch.float16 and device_type == "cuda" else STORED[dtype]


class CostModel(Protocol):
    """Predicts the seconds of a layer for one device, dtype and number of tokens.

    Attributes:
        source: Source of the figures, as text.
    """

    source: str

    def supports(self, work: WorkEstimate) -> bool:
        """Whether the model can predict this kind of work."""

    def seconds(self, work: WorkEstimate) -> float:
        """Predict the seconds of a layer. Raises KeyError for work that is not supported."""


@dataclass(frozen=True)
class FormatCandidates:
    """The formats that could serve a layer.

    Attributes:
        statistics: Statistics of the layer's mask.
        gpu: Whether the layer runs on a GPU.
        blocks: Block statistics; None unless the device runs blocks or format "panel" is requested.
        costs: The device's cost model.
        dense: The work of the dense layer, in the precision with the least predicted time.
        candidates: The requested format, or the formats that may be faster than dense, the fastest prediction
            first. Empty only if no format can be trained.
        lower: The precisions below the layer's dtype in which it may compute, where there are kernels.
        activation: The activation that times include, on a GPU.
    """

    statistics: MaskStatistics
    gpu: bool
    blocks: BlockStatistics | None
    costs: CostModel
    dense: WorkEstimate
    candidates: list[WorkEstimate]
    lower: tuple[str, ...] = ()
    activation: str = "none"

    def predicted(self, work: WorkEstimate) -> float | None:
        """Predict the seconds of a layer; None for work that the cost model does not support."""
        return self.costs.seconds(work) if self.costs.supports(work) else None

    def predicted_speedup(self, work: WorkEstimate) -> float:
        """Predict the speedup over the dense layer.

        Raises:
            KeyError: The cost model does not support this work.
        """
        return self.costs.seconds(self.dense) / max(self.costs.seconds(work), 1e-12)


def format_candidates(
    mask: Tensor,
    dtype: torch.dtype,
    device: torch.device | gpu_roofline.Device,
    tokens: int,
    *,
    format: str = "auto",
    trainable: bool = False,
    measure: bool = False,
    quick: bool = False,
    tolerance: str = "fp32",
    activation: str = "none",
) -> FormatCandidates:
    """Find the packed formats that could serve a layer.

    Args:
        mask: Bool [out, in], True = keep.
        dtype: The layer's dtype.
        device: A device of this machine, or the figures of any GPU.
        tokens: Rows of x that the layer will see.
        format: "auto", or the only format to consider.
        trainable: Whether the kept weights are to be trained.
        measure: Whether a CPU's costs may be measured.
        quick: Take ``quick_cost_model`` of a CPU.
        tolerance: The lowest precision in which the layer may compute on a CPU.
        activation: What a GPU computes of the layer's output, in the epilogue of packed panels and in a
            kernel of its own behind a dense layer. On a CPU, times leave it out.
    """
    gpu = isinstance(device, gpu_roofline.Device) or device.type == "cuda"
    stored = stored_dtype(dtype, "cuda" if gpu else "cpu")
    statistics = MaskStatistics.of(mask)
    blocks = BlockStatistics.of(mask) if gpu or format == "panel" else None
    costs: CostModel
    if isinstance(device, gpu_roofline.Device):
        costs = gpu_roofline.Roofline(device, stored, tokens, activation)
    elif gpu:
        costs = gpu_roofline.Roofline(gpu_roofline.present(device), stored, tokens, activation)
    elif quick:
        costs = quick_cost_model(stored, tokens)
    else:
        costs = cost_model(stored, tokens, measure=measure)
    wanted = (*formats.FORMATS, *formats.INT8_FORMATS) if format == "auto" else (format,)
    works = list(
        estimate_work(statistics, stored, [each for each in wanted if each not in formats.INT8_FORMATS])
    )
    if blocks and "panel" in wanted:
        works += estimate_panel_work(statistics, blocks, stored)
    if "column_panel" in wanted and (format != "auto" or _may_share_columns(gpu, statistics)):
        works += estimate_column_panel_work(mask, stored)
    denses = list(estimate_work(statistics, stored, ("dense",)))
    lower = () if gpu or trainable else lower_precisions(dtype, tolerance)
    named = format == RowPanelSparse.name
    if isinstance(costs, CpuCostModel) and (lower or tolerance != "fp32" or named):
        panels_alone = stored == torch.bfloat16 and not trainable and RowPanelSparse.name in wanted
        if panels_alone:
            works += row_panel_works(mask, statistics, "")
        costs = with_lower_precisions(costs, dtype, ("bf16",) * panels_alone + lower)
        for precision in lower:
            works += _in_precision(precision, statistics, wanted, costs)
            if RowPanelSparse.name in wanted:
                works += row_panel_works(mask, statistics, precision)
            denses += _dense_in(precision, statistics, costs)
    dense = min(denses, key=lambda work: costs.seconds(work) if costs.supports(work) else math.inf)
    if trainable:
        works = [work for work in works if _can_train(work, statistics, blocks)]
    elif format == "auto":
        of_precision = {each.precision: each for each in denses}
        works += [each for each in denses if each.format != "dense"] * statistics.full
        works = [
            work
            for work in works
            if costs.supports(work) and _can_pay(work, of_precision.get(work.precision, dense), statistics)
        ]

    def order(work: WorkEstimate) -> tuple[float, int, int]:
        # Work that the cost model does not support comes last: fewest stored weights first, then largest
        # blocks.
        seconds = costs.seconds(work) if costs.supports(work) else math.inf
        return seconds, work.stored, -math.prod(work.block or (1, 1))

    return FormatCandidates(
        statistics,
        gpu,
        blocks,
        costs,
        dense,
        sorted(works, key=order),
        _known(lower, costs),
        activation if gpu else "none",
    )


def preferred(
    mask: Tensor, dtype: torch.dtype, device: torch.device, tokens: int, *, trainable: bool = False
) -> WorkEstimate:
    """Return the format with the least predicted time, without measuring; arguments as ``format_candidates``.

    A layer that moves to another kind of device is repacked in this format.
    """
    return format_candidates(mask, dtype, device, tokens, trainable=trainable).candidates[0]


def _in_precision(
    precision: str, statistics: MaskStatistics, wanted: Sequence[str], costs: CostModel
) -> list[WorkEstimate]:
    """Estimate the work of those of the ``wanted`` formats that compute in a lower precision here."""
    int8 = precision == "int8"
    of_precision = [format for format in wanted if (format in formats.INT8_FORMATS) == int8]
    works = estimate_work(statistics, DTYPES[precision], of_precision)
    lower = (replace(work, precision=precision) for work in works)
    return [work for work in lower if costs.supports(work)]


def _dense_in(precision: str, statistics: MaskStatistics, costs: CostModel) -> list[WorkEstimate]:
    """Estimate the work of the dense layer in a lower precision: oneDNN's, or int8 vectors of all weights."""
    if precision != "int8":
        return _in_precision(precision, statistics, ("dense",), costs)
    full = MaskStatistics.of(torch.ones(1, 1, dtype=torch.bool).expand(statistics.rows, statistics.columns))
    return _in_precision(precision, full, tuple(formats.INT8_FORMATS), costs)


def row_panel_works(mask: Tensor, statistics: MaskStatistics, precision: str) -> list[WorkEstimate]:
    """Estimate the work of row panels in a lower precision, or in bf16 for layers of that dtype ("")."""
    panels = RowPanelStatistics.of(mask, DTYPES[precision or "bf16"])
    return list(estimate_row_panel_work(statistics, panels, precision))


def _known(precisions: Sequence[str], costs: CostModel) -> tuple[str, ...]:
    """Return the precisions that a cost model has costs for."""
    kinds = costs.costs if isinstance(costs, CpuCostModel) else ()
    return tuple(each for each in precisions if any(kind.endswith(f" {each}") for kind in kinds))


def _may_share_columns(gpu: bool, statistics: MaskStatistics) -> bool:
    """Whether a search for rows that need the same columns may pay."""
    return gpu and statistics.sparsity >= LEAST_SPARSITY_OF_COLUMN_PANELS


def _can_train(work: WorkEstimate, statistics: MaskStatistics, blocks: BlockStatistics | None) -> bool:
    """Whether the format stores no pruned weight, which training would revive."""
    if work.format == "vector" and work.block:
        return statistics.aligned(work.block[0])
    if work.format == "panel" and work.block and blocks:
        return blocks.blocks[work.block] * math.prod(work.block) == statistics.kept
    return work.format == "element"


def _can_pay(work: WorkEstimate, dense: WorkEstimate, statistics: MaskStatistics) -> bool:
    if work.format == "dense" or work == dense:
        return True
    smaller = work.nbytes < dense.nbytes and not statistics.full
    return smaller and (work.format != "compact" or statistics.has_dead_lines)
