"""Mask statistics: counts of kept weights, live lines, vectors and blocks, which decide a layer's speed."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sparsebert_kernels.formats import panel, row_panel
from sparsebert_kernels.formats.base import TILE_COLUMNS

VECTOR_ROWS = (8, 4, 2)
PANEL_BLOCKS = tuple((rows, columns) for rows in panel.PANEL_ROWS for columns in panel.GROUP_COLUMNS)


@dataclass(frozen=True)
class MaskStatistics:
    """The counts of a mask that most formats' work depends on.

    Attributes:
        rows, columns: Shape of the mask.
        kept: Kept weights.
        live_rows, live_columns: Rows and columns that keep a weight.
        vectors: V -> number of V x 1 vectors that keep a weight.
    """

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
        # Reduced as bytes: reductions over bool are an order of magnitude slower on the CPU.
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
        """(rows, columns) of the live rectangle."""
        return self.live_rows, self.live_columns

    @property
    def sparsity(self) -> float:
        """Share of pruned weights."""
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
class RowPanelStatistics:
    """Counts of a mask's h x g blocks, which the work of format "row_panel" depends on.

    Attributes:
        dtype: bfloat16 or int8, of the packed values.
        steps: (h, g) -> k-steps that the kept blocks are packed into.
    """

    dtype: torch.dtype
    steps: dict[tuple[int, int], int]

    @classmethod
    def of(cls, mask: Tensor, dtype: torch.dtype) -> RowPanelStatistics:
        """Count a bool mask [out, in], True = keep, for every size of blocks with a kernel for ``dtype``."""
        rows, columns = mask.shape
        widths = row_panel.GROUP_COLUMNS[dtype]
        height, width = min(row_panel.PANEL_ROWS), min(widths)
        padding = (0, -columns % max(widths), 0, -rows % max(row_panel.PANEL_ROWS))
        padded = torch.nn.functional.pad(mask.view(torch.uint8), padding)
        finest = padded.view(padded.shape[0], -1, width).amax(2).unflatten(0, (-1, height)).amax(1)
        steps = {}
        for block_rows in row_panel.PANEL_ROWS:
            live = finest.unflatten(0, (-1, block_rows // height)).amax(1)
            for group in widths:
                counts = live.unflatten(1, (-1, group // width)).amax(2).sum(1)
                per_step = row_panel.STEP_COLUMNS[dtype] // group
                steps[block_rows, group] = int(((counts + per_step - 1) // per_step).sum())
        return cls(dtype, steps)


@dataclass(frozen=True)
class BlockStatistics:
    """Counts of a mask's h x g blocks, which the work of format "panel" depends on.

    Attributes:
        blocks: (h, g) -> blocks that keep a weight.
        tiles: (h, g) -> tiles of 64 columns that these blocks are packed into.
    """

    blocks: dict[tuple[int, int], int]
    tiles: dict[tuple[int, int], int]

    @classmethod
    def of(cls, mask: Tensor) -> BlockStatistics:
        """Count a bool mask [out, in], True = keep, at every size of ``PANEL_BLOCKS``."""
        rows, columns = mask.shape
        highest, widest = max(panel.PANEL_ROWS), max(panel.GROUP_COLUMNS)
        padded = torch.nn.functional.pad(mask.view(torch.uint8), (0, -columns % widest, 0, -rows % highest))
        height, width = min(panel.PANEL_ROWS), min(panel.GROUP_COLUMNS)
        # Columns first: adjacent bytes are faster to reduce.
        finest = padded.view(padded.shape[0], -1, width).amax(2).unflatten(0, (-1, height)).amax(1)
        blocks, tiles = {}, {}
        for size in PANEL_BLOCKS:
            live = finest.unflatten(0, (-1, size[0] // height)).amax(1)
            counts = live.unflatten(1, (-1, size[1] // width)).amax(2).sum(1)
            per_tile = TILE_COLUMNS // size[1]
            blocks[size] = int(counts.sum())
            tiles[size] = int(((counts + per_tile - 1) // per_tile).sum())
        return cls(blocks, tiles)

    @classmethod
    def spread(cls, rows: int, columns: int, density: float) -> BlockStatistics:
        """Return the counts of blocks of this density, spread evenly over the panels for the fewest tiles."""
        blocks, tiles = {}, {}
        for height, width in PANEL_BLOCKS:
            panels, per_tile = -(-rows // height), TILE_COLUMNS // width
            total = round(density * panels * (columns / width))
            least, fuller = divmod(total, panels)
            blocks[height, width] = total
            # ``fuller`` panels hold one block more than the others.
            tiles[height, width] = (panels - fuller) * -(-least // per_tile) + fuller * -(
                -(least + 1) // per_tile
            )
        return cls(blocks, tiles)
