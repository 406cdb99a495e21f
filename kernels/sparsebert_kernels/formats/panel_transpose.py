"""The transposed index of packed panels: panels of W.T that refer to the values of W."""

from __future__ import annotations

import torch
from torch import Tensor

from .base import TILE_COLUMNS
from .panel import PanelSparse, pack_slots

TRANSPOSED_ROWS = 64


def transposed_panels(packed: PanelSparse) -> list[Tensor]:
    """Return the index of W.T [in, out] in panels of 64 rows and groups of u = min(h, 64) columns.

    The index does not depend on the values.

    Returns:
        ``[source, columns, starts, order]``, the last three as in ``PanelSparse``. ``source``, int32 (tiles,
        64 / u, 64 / g), holds the block of W that each piece of a tile transposes, as slot * (h / u) + part
        of the panel, or -1 where W keeps nothing.
    """
    height, group, device = packed.panel_rows, packed.group_columns, packed.device
    unit = min(height, TILE_COLUMNS)
    parts, pieces, units = height // unit, TRANSPOSED_ROWS // group, TILE_COLUMNS // unit
    panel, column, slot = packed.slots()
    part = torch.arange(parts, device=device)
    # One entry per piece: the piece's panel, group and position in W.T, and the block of W.
    flipped_panel = (column // pieces)[:, None].expand(-1, parts).reshape(-1)
    piece = (column % pieces)[:, None].expand(-1, parts).reshape(-1)
    flipped_group = (panel[:, None] * parts + part).reshape(-1)
    block = (slot[:, None] * parts + part).reshape(-1)

    panels, groups = -(-packed.shape[1] // TRANSPOSED_ROWS), -(-packed.shape[0] // unit)
    live = torch.zeros(panels, packed.panels * parts, dtype=torch.bool, device=device)
    live[flipped_panel, flipped_group] = True
    # The parts of the last panel beyond the matrix hold only zeros.
    slots = pack_slots(live[:, :groups], units)
    slot_of = torch.full(live.shape, -1, dtype=torch.int64, device=device)
    slot_of[slots.panel, slots.column] = slots.tile * units + slots.place
    source = torch.full((max(slots.tiles, 1) * units, pieces), -1, dtype=torch.int32, device=device)
    inside = flipped_group < groups
    target = slot_of[flipped_panel[inside], flipped_group[inside]]
    source[target, piece[inside]] = block[inside].int()
    return [source.view(-1, units, pieces), slots.columns, slots.starts, slots.order]
