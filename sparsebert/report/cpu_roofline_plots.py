"""Pictures of the measured roofline of a CPU."""

from __future__ import annotations

import functools
import statistics
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from sparsebert.report.cpu_roofline import (
    PARTS,
    Roofline,
    RooflinePoint,
    ceilings_text,
    rooflines,
    share_text,
)
from sparsebert.report.format import Record, machine_text
from sparsebert.report.picture import Picture
from sparsebert.report.plots import COLOURS, MARKERS, new_figure
from sparsebert.report.point_labels import label_points
from sparsebert.report.profile_tables import NAMES
from sparsebert.report.table import Table

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_MARKERS = dict(zip(PARTS, MARKERS, strict=True))
_SHORT = {"qkv": "qkv", "attention": "attention", "output": "output", "up": "up", "down": "down"}
_INK = "0.3"
_DENSE = "0.45"
# Areas of marks, in square points: the smallest, one that takes the whole batch, and one of a legend.
_SMALLEST, _WHOLE, _LEGEND = 24.0, 500.0, 40.0


def cpu_roofline_pictures(records: Iterable[Record]) -> list[Picture]:
    """Return a picture for each roofline that has points."""
    pictures = []
    for each in rooflines(records):
        points = each.drawn()
        if points:
            title = f"Measured roofline: {each.title}"
            caption = (
                "Each mark is a part of the model: the higher, the faster; its area is its share of the "
                "batch's time, which the legend holds. The table has further sides. No part can be faster "
                "than the line of its precision, nor than the slope of memory, or of the last-level cache "
                f"where its operands fit. {' '.join(each.notes())}"
            )
            draw = functools.partial(cpu_roofline_figure, each)
            pictures.append(
                Picture(title, f"{title}. {_message(each, points)}", draw, caption, _numbers(each))
            )
    return pictures


def cpu_roofline_figure(roofline: Roofline) -> Figure:
    """Return the plot of useful FLOP/s against useful FLOP per byte, under the ceilings.

    Raises:
        ValueError: There are no points under a ceiling, or matplotlib is not installed.
    """
    points = roofline.drawn()
    if not points:
        raise ValueError("nothing to plot: no part has FLOP, a time and a ceiling")
    figure, axes = new_figure()
    from matplotlib.ticker import LogLocator, NullLocator

    axes.set_xscale("log")
    axes.set_yscale("log")
    _ceilings(axes, roofline.ceilings, points)
    _marks(axes, points)
    axes.set_xlabel("useful FLOP per byte of weights and activations")
    axes.set_ylabel("useful GFLOP/s")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.set_minor_locator(NullLocator())
        axis.set_major_formatter("{x:g}")
    axes.set_title(
        f"Measured roofline: {roofline.title}".replace(" layers, ", " layers\n"), loc="left", fontsize=10
    )
    note = machine_text(roofline.rows[-1]["environment"])
    if roofline.busy:
        note += "\nTHE MACHINE WAS TOO BUSY: do not quote"
    figure.supxlabel(note, fontsize=7, color="0.35", x=0.01, ha="left")
    return figure


def _ceilings(axes: Axes, ceilings: Record, points: Sequence[RooflinePoint]) -> None:
    """Draw slopes and lines, those of precisions that no point computes in thinner."""
    top = max(ceilings["flops"].values())
    fastest = max(ceilings["read"], ceilings["cache_read"] or 0.0)
    # Wide enough for both slopes to be seen.
    low = min(*(each.intensity for each in points), top / fastest) / 2
    high = 2.2 * max(*(each.intensity for each in points), top / ceilings["read"])
    used = {name for each in points for name in each.precision.split(", ")}
    slopes = [("read", "-", "memory")]
    if ceilings["cache_read"] is not None:
        slopes.append(("cache_read", "--", "last-level cache"))
    for name, dashes, words in slopes:
        bandwidth = ceilings[name]
        xs = [low, min(max(top / bandwidth, low), high)]
        label = f"{words}: {bandwidth / 1e9:.0f} GB/s"
        axes.plot(xs, [bandwidth * x / 1e9 for x in xs], dashes, color=_INK, linewidth=1, label=label)
    style: dict[str, Any] = {"textcoords": "offset points", "fontsize": 8, "color": _INK, "ha": "right"}
    for precision, peak in ceilings["flops"].items():
        left = min(max(peak / fastest, low), high)
        width = 1.2 if precision in used else 0.6
        axes.plot([left, high], [peak / 1e9] * 2, "-", color=_INK, linewidth=width)
        axes.annotate(f"{precision}: {peak / 1e9:.0f} GFLOP/s", (high, peak / 1e9), (0, 3), **style)
    axes.set_xlim(low, high)
    axes.set_ylim(min(each.rate for each in points) / 2e9, 1.6 * top / 1e9)


def _marks(axes: Axes, points: Sequence[RooflinePoint]) -> None:
    """Draw the points: a colour for each side, a marker for each part; labels at the first and last side."""
    sides: dict[str, list[RooflinePoint]] = {}
    for point in points:
        sides.setdefault(point.series, []).append(point)
    dense = [name for name in sides if name.startswith("dense")]
    for number, (name, members) in enumerate(sides.items(), start=-len(dense)):
        colour = _DENSE if name in dense else COLOURS[number % len(COLOURS)]
        hollow = name in dense[1:] or number >= len(COLOURS)
        style: dict[str, Any] = {
            "facecolor": "none" if hollow else colour,
            "edgecolor": colour if hollow else "white",
            "linewidth": 1.2 if hollow else 0.6,
        }
        for each in members:
            area = max(_SMALLEST, _WHOLE * each.milliseconds / each.batch_milliseconds)
            axes.scatter([each.intensity], [each.rate / 1e9], s=area, marker=_MARKERS[each.part], **style)
        label = f"{name}: {members[0].batch_milliseconds:.1f} ms"
        axes.scatter([], [], s=_LEGEND, marker="o", label=label, **style)
    below: dict[str, Any] = {
        "frameon": False,
        "fontsize": 8,
        "borderaxespad": 0,
        "columnspacing": 1.2,
        "handlelength": 1.6,
    }
    of_sides = axes.legend(loc="upper left", ncols=2, bbox_to_anchor=(-0.06, -0.15), **below)
    axes.add_artist(of_sides)
    of_sides.set_clip_on(False)  # else the layout leaves no room for it
    empty: dict[str, Any] = {"s": _LEGEND, "facecolor": "none", "edgecolor": _INK}
    parts = [
        axes.scatter([], [], marker=_MARKERS[part], label=NAMES[part], **empty)
        for part in PARTS
        if any(each.part == part for each in points)
    ]
    axes.legend(handles=parts, loc="upper right", ncols=2, bbox_to_anchor=(1, -0.15), **below)
    named = (next(iter(sides)), next(reversed(sides)))
    label_points(
        axes,
        [(each.intensity, each.rate / 1e9) for each in points],
        [_SHORT[each.part] if each.series in named else "" for each in points],
    )


def _message(roofline: Roofline, points: Sequence[RooflinePoint]) -> str:
    """Return what each side reaches, and the ceilings, in words."""
    texts = []
    for series in dict.fromkeys(each.series for each in points):
        members = [each for each in points if each.series == series]
        parts = ", ".join(
            f"{NAMES[each.part]} {each.rate / 1e9:.0f} ({share_text(each)})" for each in members
        )
        middle = statistics.median(each.share or 0.0 for each in members)
        texts.append(f"{series}: {parts}, median {middle:.0%}")
    return (
        "Useful GFLOP/s of each part, and the share of what the ceilings allow. "
        f"{'. '.join(texts)}. Ceilings: {ceilings_text(roofline.ceilings)}."
    )


def _numbers(roofline: Roofline) -> Table:
    columns = (
        *("side", "part", "precision", "flop_per_byte", "flops", "attainable_flops", "bound"),
        *("milliseconds", "busy"),
    )
    rows = tuple(
        (
            each.series,
            NAMES[each.part],
            each.precision,
            f"{each.intensity:.6g}",
            f"{each.rate:.6g}",
            "" if each.attainable is None else f"{each.attainable:.6g}",
            each.bound,
            f"{each.milliseconds:.6g}",
            str(each.busy).lower(),
        )
        for each in roofline.points()
    )
    return Table("", columns, rows)
