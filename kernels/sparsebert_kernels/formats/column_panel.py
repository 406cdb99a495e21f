"""Column panels: rows that need similar columns share one list of columns and are dense in it.

For unstructured masks of very high sparsity on a GPU. The rows are reordered and cut into panels of 64 or
128; a panel stores a dense tile of weights for the union of its rows' columns. Work and storage scale with
that union, which for a random mask is almost everything even at 95 %: `union` says what a mask comes to, and
only a small one is worth a kernel.
"""

from __future__ import annotations

from typing import Any, Self

import torch
from torch import Tensor

from sparsebert_kernels.errors import unknown

from .base import GPU_DTYPES, PackedWeight, checked, refuse_options

TILE_COLUMNS = 64
PANEL_ROWS = (64, 128)
ROW_ORDERS = ("best", "count", "greedy")


class ColumnPanelSparse(PackedWeight):
    """Dense panels of rows over the columns that any of their rows keeps.

    values   float32, bfloat16 or float16 (tiles, h, 64)   panel by panel; at least one tile, then of zeros
    columns  int32 ((tiles + 1) * 64,)   column behind each column of a tile. What a panel leaves of its last
             tile repeats its last column with zero weights. One tile's worth of zeros ends it, because a
             kernel reads the columns of the next tile ahead of time.
    starts   int32 (panels + 1,)   first tile of each panel
    rows     int32 (panels * h,)   row of W behind each row of a panel; out_features where there is none
    """

    name = "column_panel"
    TENSORS = ("values", "columns", "starts", "rows")
    GEOMETRY = ()

    columns: Tensor
    starts: Tensor
    rows: Tensor

    @classmethod
    def from_dense(
        cls,
        weight: Tensor,
        mask: Tensor | None = None,
        *,
        panel_rows: int = 64,
        row_order: str = "best",
        **options: Any,
    ) -> Self:
        """See `PackedWeight.from_dense`; ``weight`` may be float16, too.

        panel_rows  h, 64 or 128
        row_order   "count" sorts rows by how many weights they keep, "greedy" grows each panel by the row
                    that adds the fewest columns, "best" takes the one with the smaller union

        Raises ValueError for another height or order.
        """
        refuse_options(cls, options)
        weight, mask = checked(weight, mask, GPU_DTYPES)
        _check(panel_rows, row_order)
        out_features, in_features = weight.shape
        rows = _ordered(mask, panel_rows, row_order)
        panels = rows.numel() // panel_rows
        live = _live_columns(mask, rows, panel_rows)

        panel, column = live.nonzero(as_tuple=True)
        counts = live.sum(1)
        tiles = (counts + (TILE_COLUMNS - 1)) // TILE_COLUMNS
        starts = torch.zeros(panels + 1, dtype=torch.int64, device=weight.device)
        starts[1:] = tiles.cumsum(0)
        stored = int(starts[-1])
        first_slot = torch.repeat_interleave(starts[:-1] * TILE_COLUMNS - (counts.cumsum(0) - counts), counts)
        slot = first_slot + torch.arange(panel.numel(), device=weight.device)

        columns = torch.zeros((stored + 1) * TILE_COLUMNS, dtype=torch.int32, device=weight.device)
        columns[slot] = column.int()
        used = torch.zeros(stored * TILE_COLUMNS, dtype=torch.bool, device=weight.device)
        used[slot] = True
        # What fills up a tile repeats the last column before it.
        place = torch.arange(used.numel(), device=weight.device)
        columns[: used.numel()] = columns[torch.where(used, place, 0).cummax(0).values]

        # One row more, of zeros, for the places of a last panel that no row of W takes.
        kept = torch.nn.functional.pad(torch.where(mask, weight, weight.new_zeros(())), (0, 0, 0, 1))
        values = weight.new_zeros(max(stored, 1), TILE_COLUMNS, panel_rows)
        values.view(-1, panel_rows)[slot] = kept[rows.view(panels, panel_rows)[panel], column[:, None]]
        return cls(
            (out_features, in_features),
            {
                "values": values.transpose(1, 2).contiguous(),
                "columns": columns,
                "starts": starts.int(),
                "rows": rows.int(),
            },
            {},
        )

    @property
    def panel_rows(self) -> int:
        """h, the rows of a panel."""
        return self.values.shape[1]

    @property
    def panels(self) -> int:
        return self.starts.numel() - 1

    @property
    def union(self) -> float:
        """Share of the columns that a panel reads on average, fillings of its last tile included."""
        return (self.columns.numel() - TILE_COLUMNS) / (self.panels * self.shape[1])

    def to_dense(self) -> Tensor:
        tiles = self.columns.numel() // TILE_COLUMNS - 1
        panel = torch.repeat_interleave(
            torch.arange(self.panels, device=self.device), torch.diff(self.starts.long()), output_size=tiles
        )
        rows = self.rows.long().view(self.panels, self.panel_rows)[panel]
        columns = self.columns[: tiles * TILE_COLUMNS].long().view(tiles, TILE_COLUMNS)
        dense = self.values.new_zeros(self.shape[0] + 1, self.shape[1])
        # Accumulating, because fillings add their zeros to the column that they repeat.
        index = rows[:, :, None], columns[:, None, :]
        dense = dense.index_put(index, self.values[:tiles], accumulate=True)
        return dense[: self.shape[0]].contiguous()

    def kept(self) -> Tensor:
        """See `PackedWeight.kept`; a kept weight of exactly 0 counts as pruned."""
        return self.to_dense() != 0


def union(mask: Tensor, *, panel_rows: int = 64, row_order: str = "best") -> float:
    """What `ColumnPanelSparse.union` would be for ``mask`` (bool [out, in]), without packing anything.

    Raises ValueError for another height or order.
    """
    _check(panel_rows, row_order)
    counts = _live_columns(mask, _ordered(mask, panel_rows, row_order), panel_rows).sum(1)
    tiles = (counts + (TILE_COLUMNS - 1)) // TILE_COLUMNS
    return int(tiles.sum()) * TILE_COLUMNS / (counts.numel() * mask.shape[1])


def _check(panel_rows: int, row_order: str) -> None:
    if panel_rows not in PANEL_ROWS:
        raise ValueError(f"panel_rows is {panel_rows}; panels of 64 and 128 rows are served")
    if row_order not in ROW_ORDERS:
        raise unknown("row order", row_order, ROW_ORDERS)


def _ordered(mask: Tensor, panel_rows: int, row_order: str) -> Tensor:
    """Rows of ``mask``, panel by panel: int64 (panels * panel_rows,), out_features where none is left."""
    orders = []
    if row_order in ("best", "count"):
        orders.append(torch.sort(mask.sum(1), descending=True, stable=True).indices)
    if row_order in ("best", "greedy"):
        orders.append(_greedy(mask, panel_rows))
    missing = -mask.shape[0] % panel_rows
    orders = [torch.nn.functional.pad(order, (0, missing), value=mask.shape[0]) for order in orders]
    return min(orders, key=lambda order: int(_live_columns(mask, order, panel_rows).sum()))


def _live_columns(mask: Tensor, rows: Tensor, panel_rows: int) -> Tensor:
    """Which columns any row of each panel keeps: bool (panels, in_features)."""
    padded = torch.nn.functional.pad(mask, (0, 0, 0, 1))
    return padded[rows].view(-1, panel_rows, mask.shape[1]).any(1)


def _greedy(mask: Tensor, panel_rows: int) -> Tensor:
    """Rows so that each panel begins with the fullest row left and grows by the row that adds fewest columns.

    Ties go to the fuller row, then to the first. Each column enters a panel's union once, so that a panel
    costs one pass over the mask.
    """
    out_features, in_features = mask.shape
    by_column = mask.t().cpu().int().contiguous()
    counts = by_column.sum(0)
    # Fewest new columns first, then fullest: one number to compare by.
    scale = in_features + 1
    taken = torch.iinfo(torch.int64).max
    fullest = -counts.long()
    order = torch.empty(out_features, dtype=torch.int64)
    done = torch.zeros(out_features, dtype=torch.bool)
    for place in range(out_features):
        if place % panel_rows == 0:
            covered = torch.zeros(in_features, dtype=torch.bool)
            overlap = torch.zeros(out_features, dtype=torch.int64)
            score = fullest
        else:
            score = (counts - overlap) * scale + fullest
        row = int(torch.where(done, taken, score).argmin())
        order[place], done[row] = row, True
        new = (by_column[:, row].bool() & ~covered).nonzero().squeeze(1)
        covered[new] = True
        overlap += by_column[new].sum(0)
    return order.to(mask.device)
