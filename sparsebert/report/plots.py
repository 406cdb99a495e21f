"""Plots of result records (needs matplotlib, from the extra ``report``)."""

from __future__ import annotations

import functools
import importlib.util
import io
import itertools
import math
import os
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sparsebert.atomic import replacing
from sparsebert.report.format import (
    Record,
    granularity_text,
    machine_text,
    span_text,
    threads_text,
    tolerance_text,
)
from sparsebert.report.model_tables import sweeps

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Distinguishable for the colour-blind (Okabe and Ito), and by marker in print.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00")
MARKERS = ("o", "s", "^", "D", "v")
BASELINE_NAMES = {"onednn": "oneDNN", "eager": "eager"}
ENDINGS = (".png", ".svg", ".pdf")
# Least width of an axis of sparsity, in percent: granularities reach one sparsity up to a few weights.
MIN_SPAN = 2.0
LINE_STYLES = ("-", "--", ":")
_LONGEST_STEM = 120


@dataclass(frozen=True)
class Picture:
    """A picture of some records.

    Attributes:
        title: Title.
        alt: Description in words.
        draw: Draws it; raises like ``require_matplotlib``.
    """

    title: str
    alt: str
    draw: Callable[[], Figure]

    @property
    def stem(self) -> str:
        """The title as the name of a file without its ending."""
        return re.sub(r"[^\w.+=-]+", "-", self.title.lower()).strip("-.")[:_LONGEST_STEM]

    def png(self) -> bytes:
        """Draw the picture and return it as PNG."""
        content = io.BytesIO()
        self.draw().savefig(content, format="png")
        return content.getvalue()


def require_matplotlib() -> None:
    """Raise ValueError if matplotlib is not installed."""
    if importlib.util.find_spec("matplotlib") is None:
        raise ValueError("plots need matplotlib: pip install 'sparsebert[report]'")


def break_even(points: Sequence[tuple[float, float]]) -> float | None:
    """Return the sparsity at which the speed-up crosses 1; None if it never does from below.

    Interpolates between measured (sparsity, speed-up) points, linearly in the logarithm of the speed-up like
    the plot.
    """
    ordered = sorted(points)
    for (low, below), (high, above) in itertools.pairwise(ordered):
        if below < 1 <= above:
            return low - math.log(below) / math.log(above / below) * (high - low)
    return None


def speedup_plot(records: Iterable[Record], path: str | os.PathLike[str]) -> None:
    """Write ``speedup_figure`` to a file; raises like it and ``save_figure``."""
    save_figure(speedup_figure(records), path)


def speedup_figure(records: Iterable[Record]) -> Figure:
    """Return the plot of speed-up against sparsity for each granularity and tolerance.

    Full lines are against oneDNN, dashed ones against eager PyTorch; the band is p20 to p80 of the paired
    ratios. The break-even against oneDNN is marked.

    Raises:
        ValueError: The records have no ratio of the sparse side, or matplotlib is not installed.
    """
    ours = [record for record in records if record["kind"] == "bench" and record["provider"] == "sparse"]
    if not any(record["ratio"] for record in ours):
        raise ValueError("nothing to plot: no record of the sparse side with a ratio to a dense one")
    figure, axes = new_figure()
    for index, (name, group) in enumerate(_by_granularity(ours).items()):
        _speedup_lines(axes, name, group, COLOURS[index % len(COLOURS)], MARKERS[index % len(MARKERS)])
    axes.axhline(1, color="0.3", linewidth=1)
    axes.set_yscale("log", base=2)
    low, high = axes.get_ylim()
    ticks = [tick for tick in (0.25, 0.5, 1, 1.5, 2, 3, 4, 6, 8, 12, 16, 24) if low <= tick <= high]
    axes.set_yticks(ticks, [f"{tick:g}x" for tick in ticks])
    axes.minorticks_off()
    left, right = axes.get_xlim()
    if right - left < MIN_SPAN:
        middle = (left + right) / 2
        axes.set_xlim(middle - MIN_SPAN / 2, middle + MIN_SPAN / 2)
    axes.set_xlabel("sparsity of the pruned matrices (%)")
    axes.set_ylabel("speed-up of the whole model")
    axes.set_title(_size_text(ours[0]["workload"]), loc="left")
    axes.legend(frameon=False, loc="best")
    _footnote(figure, ours)
    return figure


def speedup_pictures(records: Sequence[Record]) -> list[Picture]:
    """Return a picture for each workload of ``sparsebert.report.model_tables.sweeps``."""
    pictures = []
    for rows in sweeps(records):
        ours = [row for row in rows if row["provider"] == "sparse"]
        if any(row["ratio"].keys() & BASELINE_NAMES.keys() for row in ours):
            names = ", ".join(_by_granularity(ours))
            shares = span_text((row["ticket"]["sparsity"] for row in ours), ".0%")
            alt = (
                f"Speed-up against sparsity, {names}, {shares}. The table of this workload holds the figures."
            )
            title = f"Speed-up: {_size_text(ours[0]['workload'])}"
            pictures.append(Picture(title, alt, functools.partial(speedup_figure, rows)))
    return pictures


def _size_text(workload: Record) -> str:
    size = f"batch {workload['batch']}, {max(workload['lengths'])} tokens"
    return f"{workload['model']}, {size}, {workload['dtype']}"


def _by_granularity(records: Sequence[Record]) -> dict[str, list[Record]]:
    groups: dict[str, dict[float, Record]] = {}
    for record in records:
        points = groups.setdefault(granularity_text(record["ticket"]) + tolerance_text(record), {})
        points[round(record["ticket"]["sparsity"], 4)] = record
    return {name: [points[sparsity] for sparsity in sorted(points)] for name, points in groups.items()}


def _speedup_lines(axes: Axes, name: str, records: Sequence[Record], colour: str, marker: str) -> None:
    for baseline, style in (("onednn", "-"), ("eager", "--")):
        rows = [record for record in records if baseline in record["ratio"]]
        if not rows:
            continue
        sparsities = [100 * row["ticket"]["sparsity"] for row in rows]
        ratios = [row["ratio"][baseline] for row in rows]
        label = f"{name}, against {BASELINE_NAMES[baseline]}"
        if baseline == "eager":
            label += f" ({rows[0]['environment']['blas']})"
        medians = [ratio["median"] for ratio in ratios]
        # The legend of a single point shows no line.
        style = style if len(rows) > 1 else "none"
        axes.plot(sparsities, medians, style, color=colour, marker=marker, markersize=5, label=label)
        axes.fill_between(
            sparsities,
            [ratio["p20"] for ratio in ratios],
            [ratio["p80"] for ratio in ratios],
            color=colour,
            alpha=0.15,
            linewidth=0,
        )
        crossing = break_even(list(zip(sparsities, medians, strict=True))) if baseline == "onednn" else None
        if crossing is not None:
            axes.plot([crossing], [1], marker="o", markersize=10, markerfacecolor="none", color=colour)
            axes.annotate(
                f"break-even {crossing:.0f} %",
                (crossing, 1),
                # One below the other, where two lines cross at nearly the same place.
                xytext=(8, -14 * (1 + len(axes.texts))),
                textcoords="offset points",
                color=colour,
            )


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
    require_matplotlib()
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
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
    require_matplotlib()
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    columns = min(columns, count)
    rows = -(-count // columns)
    figure = Figure(figsize=(size[0] * columns + 1, size[1] * rows + 0.8), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
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


def line_style(number: int) -> dict[str, Any]:
    """Return the style of the line with this number; colours repeat with other lines and markers."""
    again, place = divmod(number, len(COLOURS))
    return {
        "color": COLOURS[place],
        "marker": MARKERS[(place + again) % len(MARKERS)],
        "linestyle": LINE_STYLES[again % len(LINE_STYLES)],
        "markersize": 5,
    }


def _footnote(figure: Figure, records: Sequence[Record]) -> None:
    first = records[0]
    machine, threads = machine_text(first["environment"]), threads_text(first["workload"]["threads"])
    text = f"{machine}, {threads}; paired medians, band p20 to p80"
    if any(record["busy"] for record in records):
        text += "\nTHE MACHINE WAS TOO BUSY: do not quote"
    figure.supxlabel(text, fontsize=7, color="0.35", x=0.01, ha="left")


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
