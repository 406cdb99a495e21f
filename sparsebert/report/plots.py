"""The style of all plots, and their files (needs matplotlib, from the extra ``report``)."""

from __future__ import annotations

import functools
import importlib.util
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sparsebert.atomic import replacing
from sparsebert.report.plain_text import figure_text

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Distinguishable for the colour-blind (Okabe and Ito), and by marker in print.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00")
MARKERS = ("o", "s", "^", "D", "v")
ENDINGS = (".png", ".svg", ".pdf")
LINE_STYLES = ("-", "--", ":")
# Of areas, so that they differ without colour.
HATCHES = ("", "//", "..", "xx", "\\\\")
# A text whose gid starts so stands on a ground of its own, such as a cell of a heat map: it keeps its colour
# in pages, which draw other texts in theirs.
OWN_GROUND = "own-ground"


def require_matplotlib() -> None:
    """Raise ValueError if matplotlib is not installed."""
    if importlib.util.find_spec("matplotlib") is None:
        raise ValueError("plots need matplotlib: pip install 'sparsebert[report]'")


def empty_figure(size: tuple[float, float], dpi: float = 150) -> Figure:
    """Return a figure without axes that draws titles and other texts as they are, not as mathematics.

    Labels of legends and names of ticks need :func:`sparsebert.report.plain_text.figure_text` themselves.

    Args:
        size: Width and height in inches.
        dpi: Dots per inch.

    Raises:
        ValueError: matplotlib is not installed.
    """
    require_matplotlib()
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    figure = _plain_figure()(figsize=size, dpi=dpi, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


@functools.cache
def _plain_figure() -> Any:
    from matplotlib.figure import Figure
    from matplotlib.text import Text

    class PlainFigure(Figure):
        def draw(self, renderer: Any) -> None:
            # Formatters write these again before each drawing, numbers of logarithmic axes as mathematics.
            ticks = {
                id(text)
                for axes in self.axes
                for axis in (axes.xaxis, axes.yaxis)
                for tick in (*axis.get_major_ticks(), *axis.get_minor_ticks())
                for text in (tick.label1, tick.label2)
            }
            for text in self.findobj(Text):
                if id(text) not in ticks:
                    text.set_text(figure_text(text.get_text()))
            super().draw(renderer)

    return PlainFigure


def new_figure() -> tuple[Figure, Axes]:
    """Return an empty figure in the project's style; raises like ``require_matplotlib``."""
    figure, (axes,) = new_panels(1)
    return figure, axes


def new_panels(
    count: int, ratios: Sequence[float] | None = None, size: tuple[float, float] = (8, 5.2)
) -> tuple[Figure, Sequence[Axes]]:
    """Return a figure with panels one above the other that share the x axis.

    Args:
        count: Number of panels.
        ratios: Relative heights of the panels.
        size: Width and height in inches.
    """
    figure = empty_figure(size)
    panels = list(figure.subplots(count, 1, sharex=True, height_ratios=ratios, squeeze=False)[:, 0])
    for axes in panels:
        axes.grid(True, color="0.9")
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
    return figure, panels


def new_grid(count: int, columns: int, size: tuple[float, float] = (2.4, 2.0)) -> tuple[Figure, list[Axes]]:
    """Return a figure with panels in a grid that share both axes.

    Args:
        count: Number of panels.
        columns: Panels side by side, at most.
        size: Width and height of a panel in inches.
    """
    columns = min(columns, count)
    rows = -(-count // columns)
    figure = empty_figure((size[0] * columns + 1, size[1] * rows + 0.8))
    panels = list(figure.subplots(rows, columns, sharex=True, squeeze=False).flat)
    for axes in panels:
        axes.grid(True, color="0.9")
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
    for axes in panels[count:]:
        axes.remove()
    # The lowest of each column, also above an empty place, names the ticks.
    for axes in panels[max(0, count - columns) : count]:
        axes.tick_params(labelbottom=True)
    return figure, panels[:count]


def new_rows(
    count: int, columns: int, size: tuple[float, float], widths: Sequence[float]
) -> tuple[Figure, list[list[Axes]]]:
    """Return a figure with rows of panels that share no axis.

    Args:
        count: Number of rows.
        columns: Panels of a row.
        size: Width and height of a row in inches.
        widths: Relative widths of the columns.
    """
    figure = empty_figure((size[0], size[1] * count))
    rows = [list(row) for row in figure.subplots(count, columns, width_ratios=widths, squeeze=False)]
    for axes in (axes for row in rows for axes in row):
        axes.grid(True, color="0.9")
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
    return figure, rows


def line_style(number: int) -> dict[str, Any]:
    """Return the style of the line with this number; colours repeat with other lines and markers."""
    again, place = divmod(number, len(COLOURS))
    return {
        "color": COLOURS[place],
        "marker": MARKERS[(place + again) % len(MARKERS)],
        "linestyle": LINE_STYLES[again % len(LINE_STYLES)],
        "markersize": 5,
    }


def require_ending(path: Path) -> None:
    """Raise ValueError unless the name ends with one of ``ENDINGS``."""
    if path.suffix.lower() not in ENDINGS:
        raise ValueError(
            f"cannot draw {path}: a picture's name ends with {', '.join(ENDINGS[:-1])} or {ENDINGS[-1]}"
        )


def save_figure(figure: Figure, path: str | os.PathLike[str]) -> None:
    """Write a picture atomically, in the format of the name's ending.

    Raises:
        ValueError: The ending is not in ``ENDINGS``, or the folder does not exist.
    """
    target = Path(path)
    require_ending(target)
    if not target.parent.is_dir():
        raise ValueError(f"cannot write {target}: the folder {target.parent} does not exist")
    with replacing(target) as temporary:
        figure.savefig(temporary, format=target.suffix[1:].lower())
