"""Heat maps of shares: one hue from light to dark, legible for the colour-blind and in print."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from sparsebert.report.plots import OWN_GROUND, empty_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# From a light tint to a dark shade of Okabe and Ito's blue, of falling luminance; a pale orange for 0. The
# darkest shade differs from the ground of a dark page.
_BLUES = ("#e1edf6", "#a3cbe5", "#4f9ccd", "#0072B2", "#004a75")
NOTHING = "#f7d9ae"
DPI = 110
NOTHING_NOTE = "orange: keeps nothing"
# Cells of a map up to which each has its figure written in it.
_MOST_WRITTEN = 600
# Candidates for the ticks of a square-root scale, whose lower half matplotlib leaves empty.
_ROOT_TICKS = (1.0, 0.75, 0.5, 0.4, 0.3, 0.2, 0.1, 0.05, 0.02, 0.01, 0.005, 0.001)


def colours() -> Any:
    """Return the colour map; values below its range are drawn as ``NOTHING``, NaN is not drawn."""
    from matplotlib.colors import LinearSegmentedColormap

    return LinearSegmentedColormap.from_list("density", _BLUES).with_extremes(under=NOTHING, bad="none")


def norm(highest: float, power: float = 1.0) -> Any:
    """Return a scale from just above 0 to ``highest``.

    Args:
        highest: The largest value; where it is 0, the scale ends at 1.
        power: 0.5 for a square-root scale, on which low densities differ visibly.
    """
    from matplotlib.colors import PowerNorm

    return PowerNorm(power, vmin=1e-9, vmax=highest if highest > 0 else 1.0)


def map_panels(widths: Sequence[float], size: tuple[float, float]) -> tuple[Figure, list[Axes]]:
    """Return a figure with maps of these relative widths side by side; raises like ``require_matplotlib``."""
    figure = empty_figure(size, DPI)
    return figure, list(figure.subplots(1, len(widths), squeeze=False, width_ratios=widths)[0])


def draw_map(axes: Axes, values: np.ndarray, scale: Any, texts: Sequence[Sequence[str]]) -> Any:
    """Draw a map and write its text into each cell, unless there are very many.

    Args:
        axes: The axes.
        values: float64 [rows, columns], NaN for a cell that is not drawn.
        scale: A norm.
        texts: Text of each cell [rows][columns].

    Returns:
        The image, for a colour bar.
    """
    shades = colours()
    image = axes.imshow(np.ma.masked_invalid(values), cmap=shades, norm=scale, aspect="equal")
    axes.set_xticks(np.arange(values.shape[1]))
    axes.set_yticks(np.arange(values.shape[0]))
    axes.tick_params(length=0, labelsize=7)
    axes.spines[:].set_visible(False)
    axes.set_xticks(np.arange(1, values.shape[1]) - 0.5, minor=True)
    axes.set_yticks(np.arange(1, values.shape[0]) - 0.5, minor=True)
    axes.grid(which="minor", color="white", linewidth=1)
    axes.tick_params(which="minor", length=0)
    if values.size <= _MOST_WRITTEN:
        for (row, column), value in np.ndenumerate(values):
            if not np.isnan(value):
                red, green, blue, _ = shades(scale(value))
                # Relative luminance; the ink with the higher contrast.
                luminance = 0.2126 * red**2.2 + 0.7152 * green**2.2 + 0.0722 * blue**2.2
                ink = "black" if luminance > 0.18 else "white"
                text = axes.text(column, row, texts[row][column], ha="center", va="center", fontsize=5.5)
                text.set(color=ink, gid=f"{OWN_GROUND}-{row}-{column}")
    return image


def colour_bar(figure: Figure, image: Any, axes: Sequence[Axes], label: str, *, percent: bool = True) -> None:
    """Add a colour bar, in per cent or as plain numbers."""
    form = _percent if percent else None
    ticks = _root_ticks(image.norm.vmax) if image.norm.gamma < 1 else None
    bar = figure.colorbar(
        image, ax=list(axes), fraction=0.04, pad=0.02, extend="min", format=form, ticks=ticks
    )
    bar.set_label(label, fontsize=8)
    bar.ax.tick_params(labelsize=7)
    bar.outline.set_visible(False)


def _root_ticks(highest: float) -> list[float]:
    """Return ticks of a square-root scale that stand apart."""
    ticks: list[float] = []
    for tick in _ROOT_TICKS:
        if tick <= highest and (not ticks or (ticks[-1] / highest) ** 0.5 - (tick / highest) ** 0.5 > 0.07):
            ticks.append(tick)
    return ticks


def short_percent(share: float) -> str:
    """Return a share in per cent for a cell: "0", "<1", "12"."""
    if np.isnan(share):
        return ""
    return "<1" if 0 < share < 0.01 else f"{100 * share:.0f}"


def _percent(share: float, position: object = None) -> str:
    return f"{100 * share:g} %" if share > 1e-8 else "0 %"
