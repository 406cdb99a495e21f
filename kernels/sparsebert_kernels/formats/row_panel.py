"""Row panels for the bf16 and int8 units of CPUs: 16, 32 or 64 rows share kept columns, in groups.

The matrix is cut into row panels of h rows, a panel into groups of g columns. The columns of the groups that
a panel keeps are packed side by side into k-steps of 32 columns (bf16) or 64 (int8): the left operand of a
tile product, or pairs of weights for dot products. It is the CPU's cousin of ``PanelSparse``, with finer
groups: one group of two columns costs no more than its share of a block of 32.
"""

from __future__ import annotations

from typing import Any, Self

import torch
from torch import Tensor

from sparsebert_kernels.errors import unknown
from sparsebert_kernels.quantization import quantize_rows

from .base import GPU_DTYPES, PackedWeight, checked, refuse_options
from .panel import blocks_mask, cut_into_blocks, pack_slots

PANEL_ROWS = (16, 32, 64)
# Columns of a k-step, and of a line: features that lie side by side in the activations.
STEP_COLUMNS = {torch.bfloat16: 32, torch.int8: 64}
LINE_COLUMNS = {torch.bfloat16: 2, torch.int8: 4}
GROUP_COLUMNS = {torch.bfloat16: (1, 2, 4, 8, 16, 32), torch.int8: (4, 8, 16, 32, 64)}
# Kernels compute whole lines of 32 rows.
ROW_MULTIPLE = 32
MAX_COLUMNS = 65536  # the index has 16 bits
_DTYPES = {
    "bf16": torch.bfloat16,
    "bfloat16": torch.bfloat16,
    "int8": torch.int8,
}


class RowPanelSparse(PackedWeight):
    """Kept h x g blocks. A block is kept if any of its weights is; its pruned weights are stored as zeros.

    The kept columns of a panel are padded to whole k-steps, with zero weights at its last group, so that
    pruned columns are never read. Rows are padded to a multiple of h and of 32 with zeros.

    Attributes:
        values: bfloat16 (k-steps, h, 32) or int8 (k-steps, h, 64), panel by panel; one k-step of zeros if
            nothing is kept.
        columns: int16 (k-steps * columns of a k-step / g,), read as unsigned; of each group, the number of
            its first column divided by 2 (bfloat16) or 4 (int8). With g = 1, the number of the column: a
            panel's even columns take even places and its odd columns odd ones as far as both last, since a
            line of activations has a place for each.
        starts: int32 (panels + 1,); first k-step of each panel.
        scales: float32 (panels * h,) of the rows of int8 values, 0 in the padding; empty for bfloat16.
    """

    name = "row_panel"
    TENSORS = ("values", "columns", "starts", "scales")
    GEOMETRY = ("group_columns", "aligned")

    columns: Tensor
    starts: Tensor
    scales: Tensor
    group_columns: int
    aligned: bool  # whether every stored weight is kept

    @classmethod
    def from_dense(
        cls,
        weight: Tensor,
        mask: Tensor | None = None,
        *,
        block: tuple[int, int] = (32, 2),
        dtype: torch.dtype | str = torch.bfloat16,
        **options: Any,
    ) -> Self:
        """See ``PackedWeight.from_dense``; ``weight`` may also be float16.

        Args:
            weight: [out, in].
            mask: bool [out, in].
            block: (h, g), rows and columns of the blocks. Blocks of a multiple of the columns of a k-step are
                stored in pieces of one k-step.
            dtype: bfloat16 or int8 ("bf16" or "int8"); the weights are rounded to it. int8 weights have one
                scale for each row.

        Raises:
            ValueError: No kernel supports the block or the dtype, or the matrix has too many columns.
        """
        refuse_options(cls, options)
        weight, mask = checked(weight, mask, GPU_DTYPES)
        stored = _checked_dtype(dtype)
        height, group = _checked_block(block, stored)
        out_features, in_features = weight.shape
        if in_features > MAX_COLUMNS:
            raise ValueError(f"weight has {in_features} columns; this format stores at most {MAX_COLUMNS}")
        step = STEP_COLUMNS[stored]
        rows = max(height, ROW_MULTIPLE)
        rows *= -(-out_features // rows)
        panels, groups = rows // height, -(-in_features // group)

        kept, live = cut_into_blocks(weight, mask, panels, height, group)
        if stored == torch.int8:
            kept, scales = quantize_rows(kept)
        else:
            kept, scales = kept.to(stored), kept.new_zeros(0, dtype=torch.float32)

        per_step = step // group
        slots = pack_slots(live, per_step)
        place = slots.tile * per_step + slots.place
        if group == 1:
            place = _paired_places(slots.panel, slots.column, slots.starts.long() * step)
        index = slots.columns[: slots.tiles * per_step].clone()
        index[place] = slots.column.int()
        values = kept.new_zeros(max(slots.tiles, 1), height, per_step, group)
        values[place // per_step, :, place % per_step] = kept.view(panels, height, groups, group)[
            slots.panel, :, slots.column
        ]
        if group > 1:
            index *= group // LINE_COLUMNS[stored]

        return cls(
            (out_features, in_features),
            {
                "values": values.view(-1, height, step),
                "columns": index.to(torch.int16),
                "starts": slots.starts,
                "scales": scales,
            },
            {
                "group_columns": group,
                "aligned": torch.equal(blocks_mask(live, height, group, mask.shape), mask),
            },
        )

    @property
    def panel_rows(self) -> int:
        """h, the rows of a panel."""
        return self.values.shape[1]

    # The native library's names.
    @property
    def block_rows(self) -> int:
        return self.panel_rows

    @property
    def block_columns(self) -> int:
        return self.group_columns

    @property
    def panels(self) -> int:
        return self.starts.numel() - 1

    def blocks(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return panel, group and place (int64) of every kept block, in storage order."""
        per_step = self.values.shape[2] // self.group_columns
        counts = torch.diff(self.starts.long()) * per_step
        panel = torch.repeat_interleave(torch.arange(self.panels, device=self.device), counts)
        group = self.columns.view(torch.int16).int().long() & 0xFFFF
        if self.group_columns > 1:
            group = group // (self.group_columns // LINE_COLUMNS[self.dtype])
        # Padding repeats a group of its panel, after all others.
        key = panel * (MAX_COLUMNS + 1) + group
        order = torch.sort(key, stable=True).indices
        first = torch.ones_like(key, dtype=torch.bool)
        first[1:] = key[order][1:] != key[order][:-1]
        place = order[first].sort().values
        return panel[place], group[place], place

    def to_dense(self) -> Tensor:
        """See ``PackedWeight.to_dense``: bfloat16, or float32 for int8 values times their scales."""
        height, step = self.values.shape[1:]
        width = self.group_columns
        panel, group, place = self.blocks()
        stored = self.values.view(-1, height, step // width, width).transpose(1, 2).reshape(-1, height, width)
        groups = -(-self.shape[1] // width)
        dense = self.values.new_zeros(self.panels, groups, height, width)
        dense = dense.index_put((panel, group), stored[place])
        dense = dense.transpose(1, 2).reshape(self.panels * height, groups * width)
        if self.dtype == torch.int8:
            dense = dense.float() * self.scales[:, None]
        return dense[: self.shape[0], : self.shape[1]].contiguous()

    def kept(self) -> Tensor:
        """See ``PackedWeight.kept``; unless ``aligned``, a kept weight of exactly 0 counts as pruned."""
        if not self.aligned:
            return self.to_dense() != 0
        panel, group, _ = self.blocks()
        live = torch.zeros(
            self.panels, -(-self.shape[1] // self.group_columns), dtype=torch.bool, device=self.device
        )
        live[panel, group] = True
        return blocks_mask(live, self.panel_rows, self.group_columns, self.shape)


def _paired_places(panel: Tensor, column: Tensor, first: Tensor) -> Tensor:
    """Return places for single columns: even and odd ones alternate, then the rest of the more frequent kind.

    Args:
        panel: int64, ascending.
        column: int64, ascending inside a panel.
        first: int64, first place of each panel.
    """
    odd = column % 2
    counts = torch.zeros(2, first.numel(), dtype=torch.int64, device=panel.device)
    counts.index_put_((odd, panel), torch.ones_like(panel), accumulate=True)
    before = counts.cumsum(1) - counts  # of the same kind, in the panels before
    rank = torch.empty_like(panel)
    for kind in (0, 1):
        members = (odd == kind).nonzero().squeeze(1)
        rank[members] = torch.arange(members.numel(), device=panel.device) - before[kind][panel[members]]
    pairs = counts.amin(0)[panel]
    return first[panel] + torch.where(rank < pairs, 2 * rank + odd, pairs + rank)


def _checked_dtype(dtype: torch.dtype | str) -> torch.dtype:
    stored = _DTYPES.get(str(dtype).removeprefix("torch."))
    if stored is None:
        raise unknown("dtype of row panels", dtype, _DTYPES)
    return stored


def _checked_block(block: tuple[int, int], dtype: torch.dtype) -> tuple[int, int]:
    """Return the rows of a panel and the columns of a group."""
    step, groups = STEP_COLUMNS[dtype], GROUP_COLUMNS[dtype]
    height, width = block
    group = step if width > 0 and width % step == 0 else width
    if height not in PANEL_ROWS or group not in groups:
        finest = ", ".join(map(str, groups[:-1]))
        raise ValueError(
            f"block must have 16, 32 or 64 rows and {finest} or a multiple of {step} columns "
            f"for {str(dtype).removeprefix('torch.')}, got {tuple(block)}"
        )
    return height, group
