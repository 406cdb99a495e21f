"""What a packed format would cost a layer: work counted from the mask, time from a linear model."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sparsebert_kernels.formats import bitmap, column_panel, element, panel, vector

VECTOR_ROWS = (8, 4, 2)
PANEL_BLOCKS = tuple((rows, columns) for rows in panel.PANEL_ROWS for columns in panel.GROUP_COLUMNS)


@dataclass(frozen=True)
class MaskStatistics:
    """What decides how fast a mask can run. ``vectors``: V -> number of V x 1 vectors that keep a weight."""

    rows: int
    columns: int
    kept: int
    live_rows: int
    live_columns: int
    vectors: dict[int, int]

    @classmethod
    def of(cls, mask: Tensor) -> MaskStatistics:
        """Count a bool mask [out, in], True = keep."""
        rows, columns = mask.shape
        # Bytes and maxima: reductions over bool are an order of magnitude slower on the CPU.
        folded = torch.nn.functional.pad(mask.view(torch.uint8), (0, 0, 0, -rows % max(VECTOR_ROWS)))
        vectors = {}
        for height in sorted(VECTOR_ROWS):
            folded = folded[0::2] | folded[1::2]
            vectors[height] = int(torch.count_nonzero(folded))
        return cls(
            rows=rows,
            columns=columns,
            kept=int(torch.count_nonzero(mask)),
            live_rows=int(mask.view(torch.uint8).amax(1).sum()),
            live_columns=int(folded.amax(0).sum()),
            vectors=vectors,
        )

    @property
    def live_shape(self) -> tuple[int, int]:
        """Rows and columns that keep a weight."""
        return self.live_rows, self.live_columns

    @property
    def sparsity(self) -> float:
        return 1 - self.kept / (self.rows * self.columns)

    @property
    def full(self) -> bool:
        """Whether nothing is pruned."""
        return self.kept == self.rows * self.columns

    @property
    def has_dead_lines(self) -> bool:
        """Whether a whole row or column is pruned."""
        return self.live_rows < self.rows or self.live_columns < self.columns

    def aligned(self, height: int) -> bool:
        """Whether the mask consists of whole vectors of that height."""
        return self.rows % height == 0 and self.vectors[height] * height == self.kept


@dataclass(frozen=True)
class BlockStatistics:
    """How many h x g blocks of a mask keep a weight, and how many tiles of 64 columns they are packed in."""

    blocks: dict[tuple[int, int], int]
    tiles: dict[tuple[int, int], int]

    @classmethod
    def of(cls, mask: Tensor) -> BlockStatistics:
        """Count a bool mask [out, in], True = keep, at every size of `PANEL_BLOCKS`."""
        rows, columns = mask.shape
        highest, widest = max(panel.PANEL_ROWS), max(panel.GROUP_COLUMNS)
        padded = torch.nn.functional.pad(mask.view(torch.uint8), (0, -columns % widest, 0, -rows % highest))
        height, width = min(panel.PANEL_ROWS), min(panel.GROUP_COLUMNS)
        # Columns first: bytes that lie side by side are the quick ones to reduce.
        finest = padded.view(padded.shape[0], -1, width).amax(2).unflatten(0, (-1, height)).amax(1)
        blocks, tiles = {}, {}
        for size in PANEL_BLOCKS:
            live = finest.unflatten(0, (-1, size[0] // height)).amax(1)
            counts = live.unflatten(1, (-1, size[1] // width)).amax(2).sum(1)
            per_tile = panel.TILE_COLUMNS // size[1]
            blocks[size] = int(counts.sum())
            tiles[size] = int(((counts + per_tile - 1) // per_tile).sum())
        return cls(blocks, tiles)

    @classmethod
    def spread(cls, rows: int, columns: int, density: float) -> BlockStatistics:
        """What blocks of that density would take that are dealt evenly to the panels: the least possible."""
        blocks, tiles = {}, {}
        for height, width in PANEL_BLOCKS:
            panels, per_tile = -(-rows // height), panel.TILE_COLUMNS // width
            total = round(density * panels * (columns / width))
            each, longer = divmod(total, panels)
            blocks[height, width] = total
            shorter, longest = -(-each // per_tile), -(-(each + 1) // per_tile)
            tiles[height, width] = (panels - longer) * shorter + longer * longest
        return cls(blocks, tiles)


@dataclass(frozen=True)
class WorkEstimate:
    """What running a layer in one format takes.

    stored   multiply-adds a token
    lines    features read and written a token
    nbytes   bytes of the packed weight, to within a few percent
    block    (rows, columns) of the vectors or blocks it is stored in, where the format has them
    shape    (rows, columns) that are multiplied: of the weight, or of what is left of it
    """

    format: str
    stored: int
    lines: int
    nbytes: int
    block: tuple[int, int] | None = None
    shape: tuple[int, int] = (0, 0)

    @property
    def kind(self) -> str:
        """The format with its block size: what has costs of its own."""
        return format_label(self.format, self.block)

    @property
    def options(self) -> dict[str, Any]:
        """Options for `sparsebert_kernels.formats.pack`."""
        return format_options(self.format, self.block)


def format_label(format: str, block: tuple[int, int] | None) -> str:
    """The format for people to read, e.g. "vector 4x1"."""
    return format if block is None else f"{format} {block[0]}x{block[1]}"


def format_options(format: str, block: tuple[int, int] | None) -> dict[str, Any]:
    """Options for `sparsebert_kernels.formats.pack` that store a weight in blocks of that size."""
    if block is None:
        return {}
    rows_alone = {"vector": "vector_rows", "column_panel": "panel_rows"}
    return {rows_alone[format]: block[0]} if format in rows_alone else {"block_size": block}


def estimate_work(mask: MaskStatistics, dtype: torch.dtype, formats: Iterable[str]) -> Iterator[WorkEstimate]:
    """The work of each of ``formats`` with values of ``dtype`` that `MaskStatistics` tell; "vector" once for
    every height."""
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
            case "compact":
                live = mask.live_rows * mask.live_columns
                lines = rows + mask.live_columns
                nbytes = live * item + 8 * (mask.live_rows + mask.live_columns)
                yield WorkEstimate(format, live, lines, nbytes, shape=mask.live_shape)
            case "csr":
                yield WorkEstimate(format, mask.kept, rows + columns, mask.kept * (item + 4) + 4 * (rows + 1))
            case "bitmap":
                index = rows * (4 * -(-columns // 32) + 2 * -(-columns // bitmap.TILE_COLUMNS) + 4)
                nbytes = max(mask.kept, 1) * item + index
                yield WorkEstimate(format, rows * columns, rows + columns, nbytes, shape=(rows, columns))
            case "2:4":  # half of the values and two bits of index for each
                nbytes = rows * columns // 2 * item + rows * columns // 8
                yield WorkEstimate(format, rows * columns // 2, rows + columns, nbytes, shape=(rows, columns))
            case "dense":
                nbytes = rows * columns * item
                yield WorkEstimate(format, rows * columns, rows + columns, nbytes, shape=(rows, columns))


def panel_works(mask: MaskStatistics, blocks: BlockStatistics, dtype: torch.dtype) -> Iterator[WorkEstimate]:
    """The work of format "panel" with values of ``dtype``, once for every block size."""
    for (height, width), tiles in blocks.tiles.items():
        stored = tiles * height * panel.TILE_COLUMNS
        slots = (tiles + 1) * (panel.TILE_COLUMNS // width)
        panels = -(-mask.rows // height)
        yield WorkEstimate(
            "panel",
            stored,
            mask.rows + mask.columns,
            max(stored, height * panel.TILE_COLUMNS) * dtype.itemsize + 4 * (slots + 2 * panels + 1),
            (height, width),
            (mask.rows, mask.columns),
        )


def column_panel_works(mask: Tensor, dtype: torch.dtype) -> Iterator[WorkEstimate]:
    """The work of format "column_panel" for a bool mask [out, in], rows sorted by count, for every height."""
    rows, columns = mask.shape
    for height in column_panel.PANEL_ROWS:
        panels = -(-rows // height)
        listed = round(column_panel.union(mask, panel_rows=height, row_order="count") * panels * columns)
        stored = listed * height
        index = 4 * (listed + column_panel.TILE_COLUMNS + panels + 1 + panels * height)
        nbytes = max(stored, height * column_panel.TILE_COLUMNS) * dtype.itemsize + index
        yield WorkEstimate("column_panel", stored, rows + columns, nbytes, (height, 1), (rows, columns))


@dataclass(frozen=True)
class Cost:
    """seconds = fixed + tokens * (per_stored * stored + per_line * lines), all in seconds."""

    fixed: float
    per_stored: float
    per_line: float

    def seconds(self, work: WorkEstimate, tokens: int) -> float:
        return self.fixed + tokens * (self.per_stored * work.stored + self.per_line * work.lines)
