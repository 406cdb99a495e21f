"""Labels beside the points of a scatter plot, none over another."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from sparsebert.report.plain_text import figure_text

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Place of a label: x and y in points from its point, horizontal and vertical alignment. Best first.
_Place = tuple[float, float, str, str]
_BESIDE: tuple[_Place, ...] = (
    (5, 4, "left", "bottom"),
    (5, -4, "left", "top"),
    (-5, 4, "right", "bottom"),
    (-5, -4, "right", "top"),
)
_PLACES = [(x, y * step, across, along) for step in (1, 4, 7, 10) for x, y, across, along in _BESIDE]
# Half the width of a marker, in pixels.
_MARKER = 5


def label_points(
    axes: Axes, points: Sequence[tuple[float, float]], labels: Sequence[str], *, fontsize: float = 7
) -> None:
    """Write a label beside each point, where it covers neither a point nor another label, if there is room.

    Call it when the limits of the axes are final.

    Args:
        axes: The axes.
        points: Points in data coordinates.
        labels: A text for each point; "" for a point that has no label, and that none may cover.
        fontsize: Size in points.
    """
    from matplotlib.transforms import Bbox

    axes.figure.draw_without_rendering()  # type: ignore[union-attr]
    inside = axes.get_window_extent()
    pixels = axes.transData.transform(points)
    taken = [Bbox.from_extents(*(centre - _MARKER), *(centre + _MARKER)) for centre in pixels]
    if (legend := axes.get_legend()) is not None:
        taken.append(legend.get_window_extent())
    for point, label in zip(points, labels, strict=True):
        if not label:
            continue
        text: Any = axes.annotate(
            figure_text(label), point, (0, 0), textcoords="offset points", fontsize=fontsize
        )

        def box_at(place: _Place, text: Any = text) -> Bbox:
            x, y, horizontal, vertical = place
            text.set(position=(x, y), ha=horizontal, va=vertical)
            return text.get_window_extent()

        def free(box: Bbox) -> bool:
            within = inside.contains(box.x0, box.y0) and inside.contains(box.x1, box.y1)
            return within and not any(map(box.overlaps, taken))

        place = next((each for each in _PLACES if free(box_at(each))), _PLACES[0])
        taken.append(box_at(place))
