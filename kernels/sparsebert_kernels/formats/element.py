"""Element-sparse weights: any mask, with one byte of index per kept weight.

The matrix is cut into row blocks of ``block_rows`` and column blocks of ``block_columns`` (at most 256, so
that a column inside a block takes one byte). Inside a block the rows are sorted by their number of kept
weights, and rows of equal count form a group: a kernel runs all rows of a group with one trip count, without
tail loops or mispredicted branches. A block's activations are sized for the L1 cache.

bfloat16 values are stored in pairs, the operands of two-element dot products such as AVX-512-BF16's; a row
with an odd count repeats its last column with value zero.
"""

from __future__ import annotations

from typing import Any, Self

import torch
from torch import Tensor

from .base import SLACK_BYTES, UNIT, PackedWeight, checked, refuse_options

BLOCK_ROWS = 768
BLOCK_COLUMNS = 256


class ElementSparse(PackedWeight):
    """Kept weights one by one.

    Rows that keep nothing are listed only in the first column block, which adds the bias.

    Attributes:
        values: float32 or bfloat16 (stored + slack,); kept weights, block by block, group by group, row by
            row.
        columns: uint8 (stored + slack,); column inside the column block.
        rows: int16 (listed rows,); row inside the row block, in storage order.
        groups: int32 (groups, 2); units that each row keeps, and number of rows.
        blocks: int64 (row blocks * column blocks + 1, 3); first group, row and value of each block.
    """

    name = "element"
    TENSORS = ("values", "columns", "rows", "groups", "blocks")
    GEOMETRY = ("block_rows", "block_columns")

    columns: Tensor
    rows: Tensor
    groups: Tensor
    blocks: Tensor
    block_rows: int
    block_columns: int

    @classmethod
    def from_dense(
        cls,
        weight: Tensor,
        mask: Tensor | None = None,
        *,
        block_rows: int = BLOCK_ROWS,
        block_columns: int = BLOCK_COLUMNS,
        **options: Any,
    ) -> Self:
        """See ``PackedWeight.from_dense``.

        Args:
            weight: [out, in].
            mask: bool [out, in].
            block_rows: Rows of a row block, 1 to 32767.
            block_columns: Columns of a column block, 1 to 256.

        Raises:
            ValueError: A block size is out of range.
        """
        refuse_options(cls, options)
        weight, mask = checked(weight, mask)
        check_block(block_rows, block_columns)
        index, slots = pack_index(mask, UNIT[weight.dtype], block_rows, block_columns)
        values = weight.new_zeros(index["columns"].numel())
        values[slots] = weight[mask]
        return cls(
            (weight.shape[0], weight.shape[1]),
            {"values": values, **index},
            {"block_rows": block_rows, "block_columns": block_columns},
        )

    def coordinates(self) -> tuple[Tensor, Tensor]:
        """Return row and column (int64) of every stored value, without slack."""
        return coordinates(
            self.columns,
            self.rows,
            self.groups,
            self.blocks,
            self.shape,
            UNIT[self.dtype],
            self.block_rows,
            self.block_columns,
        )

    def to_dense(self) -> Tensor:
        row, column = self.coordinates()
        dense = self.values.new_zeros(self.shape)
        # Accumulated, because the padding of a bf16 pair adds its zero to the column that it repeats.
        return dense.index_put((row, column), self.values[: row.numel()], accumulate=True)

    def kept(self) -> Tensor:
        row, column = self.coordinates()
        mask = torch.zeros(self.shape, dtype=torch.bool, device=self.device)
        mask[row, column] = True
        return mask


def check_block(rows: int, columns: int) -> None:
    """Raise ValueError unless the index of ``ElementSparse`` has room for blocks of this size."""
    if not 1 <= rows <= 32767 or not 1 <= columns <= 256:
        raise ValueError(f"blocks must have 1 to 32767 rows and 1 to 256 columns, got {rows} x {columns}")


def pack_index(
    mask: Tensor, unit: int, block_rows: int, block_columns: int
) -> tuple[dict[str, Tensor], Tensor]:
    """Return the index tensors of ``ElementSparse`` for ``mask``, and kept weights' slots in row order."""
    out_features, in_features = mask.shape
    device = mask.device
    row_blocks = -(-out_features // block_rows)
    column_blocks = -(-in_features // block_columns)

    padded = torch.nn.functional.pad(mask, (0, column_blocks * block_columns - in_features))
    counts = padded.view(out_features, column_blocks, block_columns).sum(-1, dtype=torch.int32)
    units = (counts + (unit - 1)) // unit

    # Sort the rows of each (row block, column block) by count; padding rows of the last row block have -1.
    by_block = units.new_full((row_blocks * block_rows, column_blocks), -1)
    by_block[:out_features] = units
    by_block = by_block.view(row_blocks, block_rows, column_blocks).transpose(1, 2)
    sorted_units, order = torch.sort(by_block, dim=2, stable=True)
    listed = sorted_units > 0
    listed[:, 0] = sorted_units[:, 0] >= 0

    rows = order[listed]
    row_units = sorted_units[listed].long()
    per_block = listed.flatten(0, 1).sum(1)
    block_of_row = torch.repeat_interleave(torch.arange(per_block.numel(), device=device), per_block)

    # Groups: runs of equal count inside a block.
    starts_group = torch.ones(rows.numel(), dtype=torch.bool, device=device)
    starts_group[1:] = (row_units[1:] != row_units[:-1]) | (block_of_row[1:] != block_of_row[:-1])
    first = starts_group.nonzero().squeeze(1)
    sizes = torch.diff(first, append=first.new_tensor([rows.numel()]))
    groups = torch.stack((row_units[first], sizes), 1).int()

    slot_end = (row_units * unit).cumsum(0)
    stored = int(slot_end[-1]) if slot_end.numel() else 0
    row_end = per_block.cumsum(0)
    group_end = torch.bincount(block_of_row[first], minlength=per_block.numel()).cumsum(0)
    # A block without listed rows begins and ends at the end of its predecessor.
    slot_bounds = torch.cat((slot_end.new_zeros(1), slot_end))[row_end]
    blocks = torch.zeros(per_block.numel() + 1, 3, dtype=torch.int64, device=device)
    blocks[1:] = torch.stack((group_end, row_end, slot_bounds), 1)

    # Slot of a kept weight: the first slot of its row in the column block, plus its rank there.
    first_slot = torch.zeros(out_features, column_blocks, dtype=torch.int64, device=device)
    column_block = block_of_row % column_blocks
    global_row = block_of_row // column_blocks * block_rows + rows
    first_slot[global_row, column_block] = slot_end - row_units * unit
    flat_counts = counts.flatten().long()
    shift = first_slot.flatten() - (flat_counts.cumsum(0) - flat_counts)
    kept_columns = mask.nonzero()[:, 1]
    slots = torch.repeat_interleave(shift, flat_counts)
    slots += torch.arange(slots.numel(), device=device)

    columns = torch.zeros(stored + SLACK_BYTES, dtype=torch.uint8, device=device)
    columns[slots] = (kept_columns % block_columns).to(torch.uint8)
    if unit == 2:
        odd = flat_counts % 2 == 1
        padding = (first_slot.flatten() + flat_counts)[odd]
        columns[padding] = columns[padding - 1]
    return {"columns": columns, "rows": rows.to(torch.int16), "groups": groups, "blocks": blocks}, slots


def coordinates(
    columns: Tensor,
    rows: Tensor,
    groups: Tensor,
    blocks: Tensor,
    shape: tuple[int, int],
    unit: int,
    block_rows: int,
    block_columns: int,
) -> tuple[Tensor, Tensor]:
    """Return row and column (int64) of every stored value of an element-sparse index, without slack."""
    column_blocks = -(-shape[1] // block_columns)
    units = torch.repeat_interleave(groups[:, 0].long(), groups[:, 1].long())
    block = torch.repeat_interleave(
        torch.arange(blocks.shape[0] - 1, device=blocks.device), torch.diff(blocks[:, 1])
    )
    global_row = block // column_blocks * block_rows + rows.view(torch.int16)
    row = torch.repeat_interleave(global_row, units * unit)
    column_base = torch.repeat_interleave(block % column_blocks * block_columns, units * unit)
    return row, column_base + columns[: row.numel()]
