"""Plots of speed-up against sparsity, with the break-even."""

from __future__ import annotations

import functools
import itertools
import math
import os
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from sparsebert.report.format import (
    Record,
    granularity_text,
    machine_text,
    span_text,
    threads_text,
    tolerance_text,
)
from sparsebert.report.model_tables import sweeps
from sparsebert.report.picture import Picture
from sparsebert.report.plots import COLOURS, MARKERS, new_figure, save_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BASELINE_NAMES = {"onednn": "oneDNN", "eager": "eager"}
# Least width of an axis of sparsity, in percent: granularities reach one sparsity up to a few weights.
MIN_SPAN = 2.0


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


def _footnote(figure: Figure, records: Sequence[Record]) -> None:
    first = records[0]
    machine, threads = machine_text(first["environment"]), threads_text(first["workload"]["threads"])
    text = f"{machine}, {threads}; paired medians, band p20 to p80"
    if any(record["busy"] for record in records):
        text += "\nTHE MACHINE WAS TOO BUSY: do not quote"
    figure.supxlabel(text, fontsize=7, color="0.35", x=0.01, ha="left")
