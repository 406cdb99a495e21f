"""The transposed index of a sparse weight, which the backward pass reads to compute dX = dY @ W."""

from __future__ import annotations

import torch
from torch import Tensor

from .base import UNIT
from .element import BLOCK_COLUMNS, BLOCK_ROWS, ElementSparse, pack_index
from .panel import PanelSparse
from .panel_transpose import transposed_panels
from .vector import VectorSparse


def transposed_index(packed: ElementSparse | VectorSparse | PanelSparse) -> list[Tensor]:
    """Return the index tensors of W.T and the positions of its values in ``packed.values``.

    The index does not depend on the values. Panels are transposed by ``transposed_panels``; the other formats
    are transposed into element-sparse form.

    Returns:
        ``[source, columns, rows, groups, blocks]``. ``packed.values.flatten()[source]`` (int64, one per slot)
        gives the values of the transposed matrix; the other tensors are its index, as in ``ElementSparse``.
    """
    if isinstance(packed, PanelSparse):
        return transposed_panels(packed)
    row, column = packed.coordinates()
    real = row < packed.shape[0]
    # The padding of an odd bf16 pair repeats the coordinates before it.
    real[1:] &= (row[1:] != row[:-1]) | (column[1:] != column[:-1])
    slots = real.nonzero().squeeze(1)
    slot_of = torch.full((packed.shape[1], packed.shape[0]), -1, dtype=torch.int64, device=packed.device)
    slot_of[column[slots], row[slots]] = slots
    mask = slot_of >= 0
    index, transposed_slots = pack_index(mask, UNIT[packed.dtype], BLOCK_ROWS, BLOCK_COLUMNS)
    # Empty slots read the slack, which is zero.
    source = torch.full((index["columns"].numel(),), packed.values.numel() - 1, device=packed.device)
    source[transposed_slots] = slot_of[mask]
    return [source, index["columns"], index["rows"], index["groups"], index["blocks"]]
