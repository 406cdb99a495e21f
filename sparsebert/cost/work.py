"""The work of a layer in a packed format, estimated from its mask, and a linear model of its time."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sparsebert.cost.mask_statistics import (
    VECTOR_ROWS,
    BlockStatistics,
    MaskStatistics,
    RowPanelStatistics,
)
from sparsebert.cost.precision import DTYPES
from sparsebert_kernels.cpu.row_panels import step_costs
from sparsebert_kernels.formats import column_panel, element, row_panel, vector, vector_int8
from sparsebert_kernels.formats.base import TILE_COLUMNS
from sparsebert_kernels.formats.row_panel import LINE_COLUMNS


@dataclass(frozen=True)
class WorkEstimate:
    """The work of a layer in one format.

    Attributes:
        format: The format's name.
        stored: Stored weights: multiply-adds per token.
        lines: Features read and written per token.
        nbytes: Bytes of the packed weight, within a few percent.
        block: (rows, columns) of the format's vectors or blocks; None in formats without them.
        shape: (rows, columns) of the matrix that is multiplied: the weight or its live rectangle.
        precision: Precision below the layer's dtype in which it computes; "" for the dtype's own.
    """

    format: str
    stored: int
    lines: int
    nbytes: int
    block: tuple[int, int] | None = None
    shape: tuple[int, int] = (0, 0)
    precision: str = ""

    @property
    def kind(self) -> str:
        """The format with its block size and a lower precision."""
        return format_label(self.format, self.block, self.precision)

    @property
    def cost_kind(self) -> str:
        """The key of the costs: ``kind``, but row panels of one height cost the same for all groups."""
        if self.format != "row_panel" or self.block is None:
            return self.kind
        precision = self.precision or "bf16"
        return format_label(self.format, (self.block[0], LINE_COLUMNS[DTYPES[precision]]), precision)

    @property
    def options(self) -> dict[str, Any]:
        """Options of ``sparsebert_kernels.formats.pack``."""
        return format_options(self.format, self.block)


def useful_flops(weights: int, tokens: int) -> int:
    """Return the FLOP of kept weights: a product and a sum for each weight and token."""
    return 2 * weights * tokens


def moved_bytes(weight_bytes: int, features: int, tokens: int, item: int) -> int:
    """Return the bytes that an operation has to read and write at least.

    Args:
        weight_bytes: Bytes of the weight as it is stored.
        features: Features of its inputs and outputs together.
        tokens: Number of tokens.
        item: Bytes of a feature.
    """
    return weight_bytes + features * tokens * item


def format_label(format: str, block: tuple[int, int] | None, precision: str = "") -> str:
    """Return the format's name with its block size and a lower precision, e.g. "vector 4x1 bf16"."""
    sized = format if block is None else f"{format} {block[0]}x{block[1]}"
    return f"{sized} {precision}" if precision else sized


def format_options(format: str, block: tuple[int, int] | None) -> dict[str, Any]:
    """Return the options of ``sparsebert_kernels.formats.pack`` that select this block size."""
    if block is None:
        return {}
    if format == "row_panel":
        return {"block": block}
    row_options = {"vector": "vector_rows", "vector_int8": "vector_rows", "column_panel": "panel_rows"}
    return {row_options[format]: block[0]} if format in row_options else {"block_size": block}


def estimate_work(mask: MaskStatistics, dtype: torch.dtype, formats: Iterable[str]) -> Iterator[WorkEstimate]:
    """Estimate the work of each format for which ``MaskStatistics`` suffices.

    Args:
        mask: Statistics of the layer's mask.
        dtype: The dtype of the packed values.
        formats: Names of formats. "vector" and "vector_int8" yield one estimate per height; "panel",
            "column_panel" and "row_panel" yield none, and have functions for themselves.
    """
    rows, columns, item = mask.rows, mask.columns, dtype.itemsize
    for format in formats:
        match format:
            case "element":
                blocks = -(-rows // element.BLOCK_ROWS) * -(-columns // element.BLOCK_COLUMNS)
                padding = blocks * min(rows, element.BLOCK_ROWS) // 2 if dtype == torch.bfloat16 else 0
                stored = mask.kept + padding
                listed = min(mask.kept, rows * -(-columns // element.BLOCK_COLUMNS))
                yield WorkEstimate(
                    format, stored, rows + columns, stored * (item + 1) + 2 * listed + 200 * blocks
                )
            case "vector":
                blocks = -(-columns // vector.BLOCK_COLUMNS)
                padded = -(-rows // vector.BLOCK_ROWS) * vector.BLOCK_ROWS
                for height in VECTOR_ROWS:
                    vectors = mask.vectors[height]
                    nbytes = vectors * (height * item + 2) + 4 * blocks * padded // height
                    yield WorkEstimate(format, vectors * height, rows + columns, nbytes, (height, 1))
            case "vector_int8":
                for height in VECTOR_ROWS:
                    units = -(-mask.vectors[height] // vector_int8.UNIT_COLUMNS) + rows // height // 2
                    stored = units * vector_int8.UNIT_COLUMNS * height
                    nbytes = stored + 2 * units * vector_int8.UNIT_COLUMNS + 12 * rows
                    yield WorkEstimate(format, stored, rows + columns, nbytes, (height, 1))
            case "compact":
                live = mask.live_rows * mask.live_columns
                lines = rows + mask.live_columns
                nbytes = live * item + 8 * (mask.live_rows + mask.live_columns)
                yield WorkEstimate(format, live, lines, nbytes, shape=mask.live_shape)
            case "csr":
                yield WorkEstimate(format, mask.kept, rows + columns, mask.kept * (item + 4) + 4 * (rows + 1))
            case "bitmap":
                index = rows * (4 * -(-columns // 32) + 2 * -(-columns // TILE_COLUMNS) + 4)
                nbytes = max(mask.kept, 1) * item + index
                yield WorkEstimate(format, rows * columns, rows + columns, nbytes, shape=(rows, columns))
            case "2:4":  # half of the values and two bits of index for each
                nbytes = rows * columns // 2 * item + rows * columns // 8
                yield WorkEstimate(format, rows * columns // 2, rows + columns, nbytes, shape=(rows, columns))
            case "dense":
                nbytes = rows * columns * item
                yield WorkEstimate(format, rows * columns, rows + columns, nbytes, shape=(rows, columns))


def estimate_panel_work(
    mask: MaskStatistics, blocks: BlockStatistics, dtype: torch.dtype
) -> Iterator[WorkEstimate]:
    """Estimate the work of format "panel" with values of ``dtype``, once per block size."""
    for (height, width), tiles in blocks.tiles.items():
        stored = tiles * height * TILE_COLUMNS
        slots = (tiles + 1) * (TILE_COLUMNS // width)
        panels = -(-mask.rows // height)
        yield WorkEstimate(
            "panel",
            stored,
            mask.rows + mask.columns,
            max(stored, height * TILE_COLUMNS) * dtype.itemsize + 4 * (slots + 2 * panels + 1),
            (height, width),
            (mask.rows, mask.columns),
        )


def estimate_column_panel_work(mask: Tensor, dtype: torch.dtype) -> Iterator[WorkEstimate]:
    """Estimate the work of format "column_panel" for a bool mask [out, in], once per height.

    Rows are sorted by their number of kept weights.
    """
    rows, columns = mask.shape
    for height in column_panel.PANEL_ROWS:
        panels = -(-rows // height)
        listed = round(column_panel.union(mask, panel_rows=height, row_order="count") * panels * columns)
        stored = listed * height
        index = 4 * (listed + TILE_COLUMNS + panels + 1 + panels * height)
        nbytes = max(stored, height * TILE_COLUMNS) * dtype.itemsize + index
        yield WorkEstimate("column_panel", stored, rows + columns, nbytes, (height, 1), (rows, columns))


def estimate_row_panel_work(
    mask: MaskStatistics, panels: RowPanelStatistics, precision: str = ""
) -> Iterator[WorkEstimate]:
    """Estimate the work of format "row_panel", once for each number of rows, with the best group of columns.

    Args:
        mask: Statistics of the mask.
        panels: Counts for the dtype of the packed values.
        precision: The precision to compute in, if it is below the layer's dtype.
    """
    step = row_panel.STEP_COLUMNS[panels.dtype]
    single_columns = step_costs()["single"]

    def order(block: tuple[int, int]) -> tuple[float, int]:
        # Of the groups with the least work, the widest: its index is the smallest.
        single = block[1] < LINE_COLUMNS[panels.dtype]
        return panels.steps[block] * (single_columns if single else 1.0), -block[1]

    for height in row_panel.PANEL_ROWS:
        block = min((block for block in panels.steps if block[0] == height), key=order)
        steps = panels.steps[block]
        stored = steps * height * step
        index = 2 * steps * (step // block[1]) + 4 * (-(-mask.rows // height) + 1)
        scales = 4 * mask.rows if panels.dtype == torch.int8 else 0
        yield WorkEstimate(
            format="row_panel",
            stored=stored,
            lines=mask.rows + mask.columns,
            nbytes=max(stored, height * step) * panels.dtype.itemsize + index + scales,
            block=block,
            shape=(mask.rows, mask.columns),
            precision=precision,
        )


@dataclass(frozen=True)
class Cost:
    """Coefficients of seconds = fixed + tokens * (per_stored * stored + per_line * lines), in seconds."""

    fixed: float
    per_stored: float
    per_line: float

    def seconds(self, work: WorkEstimate, tokens: int) -> float:
        """Predict the seconds of a layer for this many tokens."""
        return self.fixed + tokens * (self.per_stored * work.stored + self.per_line * work.lines)
