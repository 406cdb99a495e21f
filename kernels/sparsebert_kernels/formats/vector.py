"""Column vectors: V consecutive rows share their columns, with one column index for V weights.

A kernel loads an activation once for a V x 1 vector and uses it V times, so that multiplications, not loads,
limit the speed. 16x16 and 32x32 blocks are runs of such vectors and use the same format.
"""

from __future__ import annotations

from typing import Any, Self

import torch
from torch import Tensor

from .base import SLACK_BYTES, UNIT, PackedWeight, checked, refuse_options

VECTOR_ROWS = (2, 4, 8)
BLOCK_ROWS = 768
MAX_BLOCK_ROWS = 32768
BLOCK_COLUMNS = 768


class VectorSparse(PackedWeight):
    """Kept V x 1 vectors. A vector is kept if any of its weights is; its pruned weights are stored as zeros.

    A vector row is V rows of W inside one column block; a unit is one vector (fp32) or two (bf16).

    Attributes:
        values: float32 (vectors + slack, V) or bfloat16 (vectors / 2 + slack, V, 2).
        columns: int16 (vectors + slack,), read as unsigned; column inside the column block.
        starts: int32 (row blocks * column blocks * vector rows per row block + 1,); first unit of each vector
            row.
    """

    name = "vector"
    TENSORS = ("values", "columns", "starts")
    GEOMETRY = ("vector_rows", "block_rows", "block_columns", "aligned")

    columns: Tensor
    starts: Tensor
    vector_rows: int
    block_rows: int
    block_columns: int
    aligned: bool  # whether every stored weight is kept

    @classmethod
    def from_dense(
        cls,
        weight: Tensor,
        mask: Tensor | None = None,
        *,
        vector_rows: int = 4,
        block_rows: int = BLOCK_ROWS,
        block_columns: int = BLOCK_COLUMNS,
        **options: Any,
    ) -> Self:
        """See ``PackedWeight.from_dense``.

        Args:
            weight: [out, in].
            mask: bool [out, in].
            vector_rows: V, 2, 4 or 8.
            block_rows: Rows of a row block, a multiple of V up to 32768.
            block_columns: Columns of a column block, 1 to 65536.

        Raises:
            ValueError: ``vector_rows`` is not supported, or a block size is out of range.
        """
        refuse_options(cls, options)
        weight, mask = checked(weight, mask)
        if vector_rows not in VECTOR_ROWS:
            raise ValueError(f"vector_rows must be 2, 4 or 8, got {vector_rows}")
        if not 1 <= block_rows <= MAX_BLOCK_ROWS or block_rows % vector_rows:
            raise ValueError(
                f"block_rows must be a multiple of {vector_rows} up to {MAX_BLOCK_ROWS}, got {block_rows}"
            )
        if not 1 <= block_columns <= 65536:
            raise ValueError(f"block_columns must be between 1 and 65536, got {block_columns}")
        out_features, in_features = weight.shape
        unit = UNIT[weight.dtype]
        row_blocks = -(-out_features // block_rows)
        count = row_blocks * block_rows // vector_rows  # of vector rows
        column_blocks = -(-in_features // block_columns)

        padding = (0, 0, 0, count * vector_rows - out_features)
        kept = torch.where(mask, weight, weight.new_zeros(()))
        tall = torch.nn.functional.pad(kept, padding).view(count, vector_rows, in_features)
        live = torch.nn.functional.pad(mask, padding).view(count, vector_rows, in_features).any(1)
        vector_row, column = live.nonzero(as_tuple=True)

        # Storage order: row block, column block, vector row, column.
        rows_per_block = block_rows // vector_rows  # in vector rows
        place = (vector_row // rows_per_block * column_blocks + column // block_columns) * rows_per_block
        place += vector_row % rows_per_block
        order = torch.sort(place, stable=True).indices
        vector_row, column, place = vector_row[order], column[order], place[order]

        counts = torch.bincount(place, minlength=count * column_blocks)
        units = (counts + (unit - 1)) // unit
        starts = torch.zeros(counts.numel() + 1, dtype=torch.int64, device=weight.device)
        starts[1:] = units.cumsum(0)
        slots = torch.repeat_interleave(starts[:-1] * unit - (counts.cumsum(0) - counts), counts)
        slots += torch.arange(slots.numel(), device=weight.device)
        stored = int(starts[-1]) * unit

        slack = SLACK_BYTES // weight.element_size()
        values = weight.new_zeros(stored + slack, vector_rows)
        values[slots] = tall[vector_row, :, column]
        columns = torch.zeros(stored + SLACK_BYTES // 2, dtype=torch.int32, device=weight.device)
        columns[slots] = (column % block_columns).int()
        if unit == 2:
            values = values.view(-1, 2, vector_rows).transpose(1, 2).contiguous()
            odd = counts % 2 == 1
            odd_slots = (starts[:-1] * unit + counts)[odd]
            columns[odd_slots] = columns[odd_slots - 1]
        return cls(
            (out_features, in_features),
            {"values": values, "columns": columns.to(torch.int16), "starts": starts.int()},
            {
                "vector_rows": vector_rows,
                "block_rows": block_rows,
                "block_columns": block_columns,
                "aligned": torch.equal(live.repeat_interleave(vector_rows, 0)[:out_features], mask),
            },
        )

    def vectors(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return first rows, columns (int64) and values (vectors, V) of all stored vectors, without slack."""
        unit = UNIT[self.dtype]
        column_blocks = -(-self.shape[1] // self.block_columns)
        rows_per_block = self.block_rows // self.vector_rows  # in vector rows
        counts = torch.diff(self.starts.long()) * unit
        place = torch.repeat_interleave(torch.arange(counts.numel(), device=self.device), counts)
        block = place // rows_per_block
        row = block // column_blocks * self.block_rows + place % rows_per_block * self.vector_rows
        inner = self.columns.view(torch.int16)[: place.numel()].int() & 0xFFFF
        column = block % column_blocks * self.block_columns + inner
        values = self.values if unit == 1 else self.values.transpose(1, 2).reshape(-1, self.vector_rows)
        return row, column, values[: place.numel()]

    def coordinates(self) -> tuple[Tensor, Tensor]:
        """Return row and column (int64) of all stored values, in the order of ``values.flatten()``.

        The rows of a partial last vector row may exceed the matrix; their values are zero.
        """
        row, column, _ = self.vectors()
        rows = row[:, None] + torch.arange(self.vector_rows, device=self.device)
        columns = column[:, None].expand_as(rows)
        if self.dtype == torch.bfloat16:
            rows, columns = (t.reshape(-1, 2, self.vector_rows).transpose(1, 2) for t in (rows, columns))
        return rows.reshape(-1), columns.reshape(-1)

    def to_dense(self) -> Tensor:
        row, column = self.coordinates()
        padded = -(-self.shape[0] // self.vector_rows) * self.vector_rows
        dense = self.values.new_zeros(padded, self.shape[1])
        dense = dense.index_put((row, column), self.values.flatten()[: row.numel()], accumulate=True)
        return dense[: self.shape[0]].contiguous()

    def kept(self) -> Tensor:
        """See ``PackedWeight.kept``; unless ``aligned``, a kept weight of exactly 0 counts as pruned."""
        if not self.aligned:
            return self.to_dense() != 0
        row, column = self.coordinates()
        inside = row < self.shape[0]
        mask = torch.zeros(self.shape, dtype=torch.bool, device=self.device)
        mask[row[inside], column[inside]] = True
        return mask
