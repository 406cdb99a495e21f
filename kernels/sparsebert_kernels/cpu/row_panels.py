"""Matrices and heads for the bfloat16 engine of ``NativeEncoder``: row panels, heads of whole panels.

Any matrix can be stored in row panels. A mask of h x g blocks keeps its sparsity; of another mask, a row
panel keeps every column that any of its rows keeps. ``cheapest_block`` finds the blocks with the least work,
down to single columns of 16 rows and up to the whole matrix, which is then dense.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from ..formats import RowPanelSparse
from ..formats.row_panel import GROUP_COLUMNS, PANEL_ROWS, STEP_COLUMNS
from . import native
from .encoder import PAIRED_ROWS
from .encoder_parts import HeadGroup

# Time of a k-step of h rows, divided by the rows, relative to that of 32 rows, and the factor for groups of
# one column; wider groups take as long as those of two. By unit, at 128 tokens: dot products as measured on
# a Zen 4, tiles as measured on an Intel Xeon with AMX (Emerald Rapids).
STEP_COST: Mapping[str, Mapping[int | str, float]] = {
    "dot": {16: 1.0, 32: 1.0, 64: 1.0, "single": 1.03},
    "tile": {16: 1.25, 32: 1.0, 64: 0.90, "single": 1.25},
}


def step_costs() -> Mapping[int | str, float]:
    """Return the ``STEP_COST`` of the instruction set in use."""
    return STEP_COST["tile" if native.instruction_set().startswith("amx") else "dot"]


def cheapest_block(mask: Tensor, dtype: torch.dtype = torch.bfloat16) -> tuple[int, int]:
    """Return the blocks (rows, columns) in which a mask takes the least work.

    Args:
        mask: Bool [out, in], True = keep.
        dtype: Of the stored weights: bfloat16 or int8.
    """
    costs = step_costs()
    out_features, in_features = mask.shape
    step = STEP_COLUMNS[dtype]
    padding = (0, -in_features % step, 0, -out_features % PANEL_ROWS[-1])
    live = torch.nn.functional.pad(mask, padding).view(-1, PANEL_ROWS[0], in_features + padding[1]).any(1)
    best, least = (PANEL_ROWS[-1], step), float("inf")
    # The coarsest of equally cheap blocks has the smallest index.
    for height in reversed(PANEL_ROWS):
        panels = live.view(-1, height // PANEL_ROWS[0], live.shape[1]).any(1)
        for group in reversed(GROUP_COLUMNS[dtype]):
            kept = panels.view(panels.shape[0], -1, group).any(2).sum(1)
            steps = int(torch.div(kept * group + step - 1, step, rounding_mode="floor").sum())
            cost = steps * height * costs[height] * (costs["single"] if group == 1 else 1)
            if cost < least:
                best, least = (height, group), cost
    return best


def pack_row_panels(
    weight: Tensor, mask: Tensor | None = None, dtype: torch.dtype = torch.bfloat16
) -> RowPanelSparse:
    """Store a matrix in the row panels with the least work.

    Args:
        weight: [out, in].
        mask: Bool [out, in], True = keep; ``weight != 0`` by default.
        dtype: Of the stored weights: bfloat16 or int8.
    """
    mask = weight != 0 if mask is None else mask
    return RowPanelSparse.from_dense(weight, mask, block=cheapest_block(mask, dtype), dtype=dtype)


def padded_heads(heads: Sequence[HeadGroup], *, rotary: bool = False) -> list[HeadGroup]:
    """Return the heads with widths rounded up to whole panels, or with halves of whole panels if rotated."""
    halves = 2 if rotary else 1
    return [
        HeadGroup(count, halves * _whole(-(-score // halves)), _whole(value)) for count, score, value in heads
    ]


def pad_rows(tensor: Tensor, heads: Sequence[tuple[int, int]]) -> Tensor:
    """Spread the rows of heads over whole panels, with zeros between them.

    Args:
        tensor: [rows, ...]; the rows of all heads.
        heads: (heads, width) of neighbouring heads.

    Returns:
        The tensor itself if all widths are those of whole panels.
    """
    if all(width == _whole(width) for _, width in heads):
        return tensor
    parts, first = [], 0
    for count, width in heads:
        rows = tensor[first : first + count * width].reshape(count, width, *tensor.shape[1:])
        padded = rows.new_zeros(count, _whole(width), *tensor.shape[1:])
        padded[:, :width] = rows
        parts.append(padded.flatten(0, 1))
        first += count * width
    return torch.cat(parts)


def pad_columns(tensor: Tensor, heads: Sequence[tuple[int, int]]) -> Tensor:
    """Spread the columns of heads over whole panels: ``pad_rows`` of the transposed matrix."""
    padded = pad_rows(tensor.T, heads)
    return tensor if padded.shape == tensor.T.shape else padded.T


def _whole(width: int) -> int:
    return -(-width // PAIRED_ROWS) * PAIRED_ROWS
