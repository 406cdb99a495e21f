"""Column panels: rows with similar columns share one list of columns and are stored densely over it.

The format serves unstructured masks of very high sparsity on a GPU. The rows are reordered and cut into
panels of 64 or 128 rows; a panel stores dense tiles of weights for the union of its rows' columns. Work and
storage scale with the union, which for a random mask covers almost all columns even at 95 % sparsity.
``union`` computes its share for a mask; the format pays only if the share is small.
"""

from __future__ import annotations

from typing import Any, Self

import torch
from torch import Tensor

from sparsebert_kernels.errors import unknown

from .base import GPU_DTYPES, TILE_COLUMNS, PackedWeight, checked, refuse_options

PANEL_ROWS = (64, 128)
ROW_ORDERS = ("best", "count", "greedy")


class ColumnPanelSparse(PackedWeight):
    """Dense panels of rows over the columns that any of their rows keeps.

    Attributes:
        values: float32, bfloat16 or float16 (tiles, h, 64), panel by panel; one tile of zeros if nothing is
            kept.
        columns: int32 ((tiles + 1) * 64,); column of W for each column of a tile. The padding of a panel's
            last tile repeats the panel's last column, with zero weights. One tile of zeros ends the list,
            because kernels read the columns of the next tile ahead.
        starts: int32 (panels + 1,); first tile of each panel.
        rows: int32 (panels * h,); row of W for each row of a panel, out_features in the padding of the last
            panel.
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
        """See ``PackedWeight.from_dense``; ``weight`` may also be float16.

        Args:
            weight: [out, in].
            mask: bool [out, in].
            panel_rows: h, 64 or 128.
            row_order: "count" sorts rows by the number of kept weights, "greedy" grows each panel by the row
                that adds the fewest columns, "best" uses the order with the smaller union.

        Raises:
            ValueError: ``panel_rows`` or ``row_order`` is not supported.
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
        # The padding of a tile repeats the column before it.
        place = torch.arange(used.numel(), device=weight.device)
        columns[: used.numel()] = columns[torch.where(used, place, 0).cummax(0).values]

        # One extra row of zeros for the padding of the last panel.
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
        """Mean share of the columns that a panel reads, including the padding of its last tile."""
        return (self.columns.numel() - TILE_COLUMNS) / (self.panels * self.shape[1])

    def to_dense(self) -> Tensor:
        tiles = self.columns.numel() // TILE_COLUMNS - 1
        panel = torch.repeat_interleave(
            torch.arange(self.panels, device=self.device), torch.diff(self.starts.long()), output_size=tiles
        )
        rows = self.rows.long().view(self.panels, self.panel_rows)[panel]
        columns = self.columns[: tiles * TILE_COLUMNS].long().view(tiles, TILE_COLUMNS)
        dense = self.values.new_zeros(self.shape[0] + 1, self.shape[1])
        # Accumulated, because padding adds its zeros to the column that it repeats.
        index = rows[:, :, None], columns[:, None, :]
        dense = dense.index_put(index, self.values[:tiles], accumulate=True)
        return dense[: self.shape[0]].contiguous()

    def kept(self) -> Tensor:
        """See ``PackedWeight.kept``; a kept weight of exactly 0 counts as pruned."""
        return self.to_dense() != 0


def union(mask: Tensor, *, panel_rows: int = 64, row_order: str = "best") -> float:
    """Return ``ColumnPanelSparse.union`` of ``mask`` (bool [out, in]) without packing a weight.

    Raises:
        ValueError: ``panel_rows`` or ``row_order`` is not supported.
    """
    _check(panel_rows, row_order)
    counts = _live_columns(mask, _ordered(mask, panel_rows, row_order), panel_rows).sum(1)
    tiles = (counts + (TILE_COLUMNS - 1)) // TILE_COLUMNS
    return int(tiles.sum()) * TILE_COLUMNS / (counts.numel() * mask.shape[1])


def _check(panel_rows: int, row_order: str) -> None:
    if panel_rows not in PANEL_ROWS:
        raise ValueError(f"panel_rows must be 64 or 128, got {panel_rows}")
    if row_order not in ROW_ORDERS:
        raise unknown("row order", row_order, ROW_ORDERS)


def _ordered(mask: Tensor, panel_rows: int, row_order: str) -> Tensor:
    """Return the rows of ``mask`` panel by panel, padded with out_features: int64 (panels * panel_rows,)."""
    orders = []
    if row_order in ("best", "count"):
        orders.append(torch.sort(mask.sum(1), descending=True, stable=True).indices)
    if row_order in ("best", "greedy"):
        orders.append(_greedy(mask, panel_rows))
    missing = -mask.shape[0] % panel_rows
    orders = [torch.nn.functional.pad(order, (0, missing), value=mask.shape[0]) for order in orders]
    return min(orders, key=lambda order: int(_live_columns(mask, order, panel_rows).sum()))


def _live_columns(mask: Tensor, rows: Tensor, panel_rows: int) -> Tensor:
    """Return the columns that any row of each panel keeps: bool (panels, in_features)."""
    padded = torch.nn.functional.pad(mask, (0, 0, 0, 1))
    return padded[rows].view(-1, panel_rows, mask.shape[1]).any(1)


def _greedy(mask: Tensor, panel_rows: int) -> Tensor:
    """Return the rows of ``mask`` in greedy order, int64 (out_features,).

    A panel begins with the fullest remaining row and grows by the row that adds the fewest columns. Ties go
    to the fuller row, then to the first. Each column enters a panel's union once, so a panel takes one pass
    over the mask.
    """
    out_features, in_features = mask.shape
    by_column = mask.t().cpu().int().contiguous()
    counts = by_column.sum(0)
    # A score orders rows by their new columns, fewest first, then by their kept weights, most first.
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
