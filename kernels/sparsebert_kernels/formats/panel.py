"""Packed panels: block-sparse weights for the GPU kernels, in blocks of 16 to 128 rows and 8 or more columns.

The matrix is cut into row panels of ``h`` output rows (16, 32, 64 or 128), a panel into groups of ``g``
columns (8, 16, 32 or 64). The groups that a panel keeps are packed side by side into tiles of 64 columns, so
that a kernel has the same inner loop for every g: h x 8 blocks, eight times finer than h x 64 blocks, cost
the same per weight.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor

from .base import GPU_DTYPES, TILE_COLUMNS, PackedWeight, checked, refuse_options

PANEL_ROWS = (16, 32, 64, 128)
GROUP_COLUMNS = (8, 16, 32, 64)


class PanelSparse(PackedWeight):
    """Kept h x g blocks. A block is kept if any of its weights is; its pruned weights are stored as zeros.

    The last panel and group are padded with zeros.

    Attributes:
        values: float32, bfloat16 or float16 (tiles, h, 64), panel by panel; one tile of zeros if nothing is
            kept.
        columns: int32 ((tiles + 1) * 64 / g,); group of g columns in each slot of a tile. The padding of a
            panel's last tile repeats the panel's last group, with zero weights, so that pruned columns are
            never read. One tile of zeros ends the list, because kernels read the index of the next tile
            ahead.
        starts: int32 (panels + 1,); first tile of each panel.
        order: int32 (panels,); panels in descending number of tiles, so that the longest start first.
    """

    name = "panel"
    TENSORS = ("values", "columns", "starts", "order")
    GEOMETRY = ("group_columns", "aligned")

    columns: Tensor
    starts: Tensor
    order: Tensor
    group_columns: int
    aligned: bool  # whether every stored weight is kept

    @classmethod
    def from_dense(
        cls,
        weight: Tensor,
        mask: Tensor | None = None,
        *,
        block_size: tuple[int, int] = (64, 8),
        **options: Any,
    ) -> Self:
        """See ``PackedWeight.from_dense``; ``weight`` may also be float16.

        Args:
            weight: [out, in].
            mask: bool [out, in].
            block_size: (rows, columns) of the blocks. Blocks of a multiple of 64 columns are stored in pieces
                of 64.

        Raises:
            ValueError: No kernel supports the block size.
        """
        refuse_options(cls, options)
        weight, mask = checked(weight, mask, GPU_DTYPES)
        height, group = _checked_block(block_size)
        out_features, in_features = weight.shape
        panels, groups = -(-out_features // height), -(-in_features // group)

        kept, live = cut_into_blocks(weight, mask, panels, height, group)
        slots = pack_slots(live, TILE_COLUMNS // group)
        values = weight.new_zeros(max(slots.tiles, 1), height, TILE_COLUMNS // group, group)
        blocks = kept.view(panels, height, groups, group)[slots.panel, :, slots.column]
        values[slots.tile, :, slots.place] = blocks

        return cls(
            (out_features, in_features),
            {
                "values": values.view(-1, height, TILE_COLUMNS),
                "columns": slots.columns,
                "starts": slots.starts,
                "order": slots.order,
            },
            {
                "group_columns": group,
                "aligned": torch.equal(blocks_mask(live, height, group, mask.shape), mask),
            },
        )

    @functools.cached_property
    def panel_rows(self) -> int:
        """h, the rows of a panel."""
        return self.values.shape[1]

    @functools.cached_property
    def panels(self) -> int:
        """Number of row panels."""
        return self.starts.numel() - 1

    def slots(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return panel, column group and slot number (int64) of every kept block, in storage order."""
        per_tile = TILE_COLUMNS // self.group_columns
        counts = torch.diff(self.starts.long()) * per_tile
        panel = torch.repeat_interleave(torch.arange(self.panels, device=self.device), counts)
        column = self.columns[: panel.numel()].long()
        real = torch.ones(panel.numel(), dtype=torch.bool, device=self.device)
        real[1:] = (column[1:] != column[:-1]) | (panel[1:] != panel[:-1])
        slot = real.nonzero().squeeze(1)
        return panel[slot], column[slot], slot

    def coordinates(self) -> tuple[Tensor, Tensor]:
        """Return row and column (int64) of every stored value, in the order of ``values.flatten()``.

        The padding of tiles, panels and groups has the row ``out_features``.
        """
        height, group, device = self.panel_rows, self.group_columns, self.device
        panel, column, slot = self.slots()
        shape = self.values.shape[0] * (TILE_COLUMNS // group), height, group
        rows = torch.full(shape, self.shape[0], device=device)
        columns = torch.zeros(shape, dtype=torch.int64, device=device)
        rows[slot] = (panel[:, None] * height + torch.arange(height, device=device))[:, :, None]
        columns[slot] = (column[:, None] * group + torch.arange(group, device=device))[:, None]
        rows[columns >= self.shape[1]] = self.shape[0]
        rows.clamp_(max=self.shape[0])
        return self._interleaved(rows), self._interleaved(columns)

    def _interleaved(self, blocks: Tensor) -> Tensor:
        """Return blocks (slots, h, g) in the order of ``values.flatten()``."""
        per_tile = TILE_COLUMNS // self.group_columns
        tiles = blocks.view(-1, per_tile, self.panel_rows, self.group_columns)
        return tiles.transpose(1, 2).reshape(-1)

    def to_dense(self) -> Tensor:
        height, group = self.panel_rows, self.group_columns
        panel, column, slot = self.slots()
        groups = -(-self.shape[1] // group)
        tiles = self.values.view(-1, height, TILE_COLUMNS // group, group)
        blocks = tiles.transpose(1, 2).reshape(-1, height, group)[slot]
        dense = self.values.new_zeros(self.panels, groups, height, group)
        dense = dense.index_put((panel, column), blocks)
        dense = dense.transpose(1, 2).reshape(self.panels * height, groups * group)
        return dense[: self.shape[0], : self.shape[1]].contiguous()

    def kept(self) -> Tensor:
        """See ``PackedWeight.kept``; unless ``aligned``, a kept weight of exactly 0 counts as pruned."""
        if not self.aligned:
            return self.to_dense() != 0
        panel, column, _ = self.slots()
        groups = -(-self.shape[1] // self.group_columns)
        live = torch.zeros(self.panels, groups, dtype=torch.bool, device=self.device)
        live[panel, column] = True
        return blocks_mask(live, self.panel_rows, self.group_columns, self.shape)


@dataclass(frozen=True)
class Slots:
    """The storage positions of the kept blocks of a grid of panels and column groups.

    Attributes:
        panel: int64, one per kept block; its panel.
        column: int64, one per kept block; its column group.
        tile: int64, one per kept block; its tile.
        place: int64, one per kept block; its slot in the tile.
        columns: int32, as in ``PanelSparse``.
        starts: int32, as in ``PanelSparse``.
        order: int32, as in ``PanelSparse``.
        tiles: Number of tiles, 0 if nothing is kept.
    """

    panel: Tensor
    column: Tensor
    tile: Tensor
    place: Tensor
    columns: Tensor
    starts: Tensor
    order: Tensor
    tiles: int


def cut_into_blocks(
    weight: Tensor, mask: Tensor, panels: int, height: int, group: int
) -> tuple[Tensor, Tensor]:
    """Return the kept weights, padded with zeros to whole blocks, and which blocks keep any weight.

    Args:
        weight: [out, in].
        mask: bool [out, in].
        panels: Panels of the padded matrix.
        height: Rows of a block.
        group: Columns of a block.

    Returns:
        [panels * height, groups * group], and bool (panels, groups).
    """
    out_features, in_features = weight.shape
    groups = -(-in_features // group)
    padding = (0, groups * group - in_features, 0, panels * height - out_features)
    kept = torch.nn.functional.pad(torch.where(mask, weight, weight.new_zeros(())), padding)
    live = torch.nn.functional.pad(mask, padding)
    return kept, live.view(panels, height, groups, group).any(3).any(1)


def blocks_mask(live: Tensor, height: int, group: int, shape: tuple[int, ...]) -> Tensor:
    """Return the bool mask [out, in] that keeps the h x g blocks of ``live``, bool (panels, groups)."""
    blocks = live.repeat_interleave(height, 0).repeat_interleave(group, 1)
    return blocks[: shape[0], : shape[1]].contiguous()


def pack_slots(live: Tensor, per_tile: int) -> Slots:
    """Assign slots to the kept blocks of ``live`` (bool [panels, column groups]), ``per_tile`` per tile."""
    device = live.device
    counts = live.sum(1)
    tiles = (counts + per_tile - 1) // per_tile
    starts = torch.zeros(live.shape[0] + 1, dtype=torch.int64, device=device)
    starts[1:] = tiles.cumsum(0)
    total = int(starts[-1])
    first = counts.cumsum(0) - counts
    panel, column = live.nonzero(as_tuple=True)
    slot = torch.arange(panel.numel(), device=device) + (starts[:-1] * per_tile - first)[panel]

    panel_of_slot = torch.repeat_interleave(torch.arange(live.shape[0], device=device), tiles * per_tile)
    rank = torch.arange(total * per_tile, device=device) - starts[panel_of_slot] * per_tile
    rank = torch.minimum(rank, counts[panel_of_slot] - 1)
    columns = torch.zeros((total + 1) * per_tile, dtype=torch.int32, device=device)
    columns[: total * per_tile] = column[first[panel_of_slot] + rank].int()
    return Slots(
        panel=panel,
        column=column,
        tile=slot // per_tile,
        place=slot % per_tile,
        columns=columns,
        starts=starts.int(),
        order=torch.sort(tiles, descending=True, stable=True).indices.int(),
        tiles=total,
    )


def why_not_joinable(weights: Sequence[PanelSparse]) -> str | None:
    """Return None if ``join`` can join these weights, else the reason."""
    first = weights[0]
    for member in weights:
        for name in ("panel_rows", "group_columns", "dtype", "device"):
            expected, actual = getattr(first, name), getattr(member, name)
            if expected != actual:
                return f"weights to join have {name} {expected} and {actual}; they must be equal"
        if member.shape[1] != first.shape[1]:
            return (
                f"weights to join have {first.shape[1]} and {member.shape[1]} in_features; they must be equal"
            )
    for member in weights[:-1]:
        if member.shape[0] % first.panel_rows:
            return (
                f"a weight to join has {member.shape[0]} out_features; "
                f"all but the last need a multiple of their {first.panel_rows} panel rows"
            )
    return None


def join(weights: Sequence[PanelSparse]) -> tuple[PanelSparse, list[PanelSparse]]:
    """Join several weights over one x, e.g. query, key and value, into one weight for a single launch.

    Returns:
        The joined weight [sum of out_features, in_features], with the members' rows in order, and the members
        as views of its values.

    Raises:
        ValueError: A member other than the last does not fill its panels, or the weights differ in
            in_features, block size, dtype or device.
    """
    if (reason := why_not_joinable(weights)) is not None:
        raise ValueError(reason)
    first = weights[0]
    per_tile = TILE_COLUMNS // first.group_columns
    tiles = [int(member.starts[-1]) for member in weights]
    total = sum(tiles)
    values = [member.values[:count] for member, count in zip(weights, tiles, strict=True)]
    columns = [member.columns[: n * per_tile] for member, n in zip(weights, tiles, strict=True)]
    lengths = torch.cat([torch.diff(member.starts) for member in weights])
    starts = torch.zeros(lengths.numel() + 1, dtype=torch.int32, device=first.device)
    starts[1:] = lengths.cumsum(0)
    joined = PanelSparse(
        (sum(member.shape[0] for member in weights), first.shape[1]),
        {
            "values": torch.cat(values) if total else first.values.detach().clone(),
            "columns": torch.cat((*columns, first.columns.new_zeros(per_tile))),
            "starts": starts,
            "order": torch.sort(lengths, descending=True, stable=True).indices.int(),
        },
        {
            "group_columns": first.group_columns,
            "aligned": all(member.aligned for member in weights),
        },
    )
    members, begin = [], 0
    for member, count in zip(weights, tiles, strict=True):
        view = joined.values[begin : begin + count] if count else member.values
        members.append(member.replace(values=view))
        begin += count
    return joined, members


def _checked_block(block_size: tuple[int, int]) -> tuple[int, int]:
    """Return the rows of a panel and the columns of a group."""
    height, width = block_size
    group = TILE_COLUMNS if width > 0 and width % TILE_COLUMNS == 0 else width
    if height not in PANEL_ROWS or group not in GROUP_COLUMNS:
        raise ValueError(
            f"block_size must have 16, 32, 64 or 128 rows and 8, 16, 32 or a multiple of 64 columns, "
            f"got {tuple(block_size)}"
        )
    return height, group
