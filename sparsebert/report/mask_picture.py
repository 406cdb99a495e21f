"""A picture of all masks of a ticket: the matrices of each layer side by side, in blocks, to scale."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np

from sparsebert.report.heat_map import NOTHING_NOTE, colour_bar, colours, norm
from sparsebert.report.plots import new_grid
from sparsebert.tickets.density_grid import MatrixCount, layer_names
from sparsebert.tickets.kept_weights import CELLS, KeptWeights

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# As in Static Model Pruning (Jiang et al. 2023).
_SHORT = {"query": "Q", "key": "K", "value": "V", "attention_output": "O", "ffn_up": "U", "ffn_down": "D"}
_GAP = 3


def mask_figure(counts: KeptWeights, name: str) -> Figure:
    """Return the density of every block of every mask: a panel for each layer.

    Args:
        counts: The counts of the ticket.
        name: Title of the picture.

    Raises:
        ValueError: matplotlib is not installed.
    """
    layers = list(dict.fromkeys(each.layer for each in counts.matrices))
    figure, panels = new_grid(len(layers), columns=min(4, len(layers)), size=(2.3, 2.3))
    named = dict(
        zip([each for each in layers if each], layer_names([each for each in layers if each]), strict=True)
    )
    densities = {each.key: counts.blocks[each.key] / _sizes(each, counts.block) for each in counts.matrices}
    scale = norm(max(float(each.max()) for each in densities.values()), power=0.5)
    for axes, layer in zip(panels, layers, strict=True):
        matrices = [each for each in counts.matrices if each.layer == layer]
        canvas, places = _arranged({each.key: densities[each.key] for each in matrices})
        image = axes.imshow(np.ma.masked_invalid(canvas), cmap=colours(), norm=scale, interpolation="nearest")
        for each in matrices:
            row, column = places[each.key]
            axes.text(column - 0.5, row - 0.8, _SHORT.get(each.type, each.type), fontsize=6, va="bottom")
        axes.set_axis_off()
        axes.set_title(f"layer {named[layer]}" if layer else "outside of layers", loc="left", fontsize=8)
    colour_bar(figure, image, panels, f"density of a block of {counts.block}x{counts.block} weights")
    figure.suptitle(f"{name} ({NOTHING_NOTE})", x=0.01, ha="left", fontsize=9)
    return figure


def _sizes(matrix: MatrixCount, block: int) -> np.ndarray:
    """Return the weights of each block; blocks at the edges may be smaller."""
    rows, columns = (
        np.minimum(block, side - np.arange(0, side, block)) for side in (matrix.rows, matrix.columns)
    )
    return np.outer(rows, columns)


def _arranged(blocks: dict[str, np.ndarray]) -> tuple[np.ndarray, dict[str, tuple[int, int]]]:
    """Place matrices in rows, from left to right, in a canvas that is NaN between them.

    Returns:
        The canvas, and the first row and column of each matrix.
    """
    width = max([CELLS + _GAP, *(each.shape[1] for each in blocks.values())])
    places: dict[str, tuple[int, int]] = {}
    top, left, height = _GAP, 0, 0
    for key, each in blocks.items():
        if left and left + each.shape[1] > width:
            top, left, height = top + height + _GAP, 0, 0
        places[key] = top, left
        left, height = left + each.shape[1] + _GAP, max(height, each.shape[0])
    canvas = np.full((_bottom(blocks, places), width), np.nan)
    for key, each in blocks.items():
        row, column = places[key]
        canvas[row : row + each.shape[0], column : column + each.shape[1]] = each
    return canvas, places


def _bottom(blocks: dict[str, np.ndarray], places: dict[str, tuple[int, int]]) -> int:
    rows: Iterable[int] = (places[key][0] + each.shape[0] for key, each in blocks.items())
    return max(rows)
