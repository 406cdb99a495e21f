"""Plots of accuracy against sparsity for each method, above the measured speed of the tickets."""

from __future__ import annotations

import functools
import os
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from sparsebert.report.format import Record, machine_text, threads_text
from sparsebert.report.lottery_tables import NAMES, Point, points
from sparsebert.report.picture import Picture
from sparsebert.report.plots import line_style, new_panels, save_figure
from sparsebert.tasks import metrics

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def curve_plot(records: Iterable[Record], path: str | os.PathLike[str]) -> None:
    """Write ``curve_figure`` to a file; raises like it and ``save_figure``."""
    save_figure(curve_figure(records), path)


def curve_pictures(records: Sequence[Record]) -> list[Picture]:
    """Return a picture if the records hold dense runs and a speed."""
    all_points, dense, timed = _shown(records)
    if dense is None or not timed:
        return []
    methods = ", ".join(dict.fromkeys(NAMES[point.label] for point in all_points if point is not dense))
    alt = (
        f"Above, {metrics.primary(dense.task)} on {dense.task} against sparsity, beside the dense model: "
        f"{methods}. Below, the measured speed of the same tickets. The tables of tickets hold the figures."
    )
    title = f"Tickets on {dense.task}: accuracy and speed against sparsity"
    return [Picture(title, alt, functools.partial(curve_figure, records))]


def _shown(records: Sequence[Record]) -> tuple[list[Point], Point | None, list[Point]]:
    """Return all points, the dense one, and those with a measured speed."""
    all_points = points(records, "curve", "learned")
    dense = next((point for point in all_points if point.label == "dense"), None)
    return all_points, dense, [point for point in all_points if point.speed]


def curve_figure(records: Iterable[Record]) -> Figure:
    """Return the plot of all methods on a task.

    Raises:
        ValueError: Dense runs or speeds are missing, or matplotlib is not installed.
    """
    records = list(records)
    all_points, dense, timed = _shown(records)
    if dense is None or not timed:
        raise ValueError("nothing to plot: no dense runs, or no speed measured, among the records")
    figure, (top, bottom) = new_panels(2, ratios=(2, 1), size=(10, 6.2))
    mean, std = 100 * dense.summary.mean, 100 * (dense.summary.std or 0.0)
    top.axhline(mean, color="0.3", linewidth=1, label="dense, band: standard deviation")
    top.axhspan(mean - std, mean + std, color="0.3", alpha=0.12, linewidth=0)
    methods = list(dict.fromkeys(point.label for point in all_points if point is not dense))
    for number, label in enumerate(methods):
        tickets = [point for point in all_points if point.label == label]
        style = line_style(number)
        top.errorbar(
            [100 * point.sparsity for point in tickets],
            [100 * point.summary.mean for point in tickets],
            [100 * (point.summary.std or 0.0) for point in tickets],
            **style,
            capsize=3,
            label=NAMES[label],
        )
        tickets = [point for point in tickets if point.speed]
        bottom.plot(
            [100 * point.sparsity for point in tickets],
            [_against_onednn(point) for point in tickets],
            **style,
        )
    bottom.axhline(1, color="0.3", linewidth=1)
    top.set_ylabel(f"{dense.task}, {metrics.primary(dense.task)} (%)")
    bottom.set_ylabel("speed against oneDNN")
    bottom.yaxis.set_major_formatter("{x:g}x")
    bottom.set_xlabel("sparsity of the encoder's matrices (%)")
    counts = sorted({len(point.values) for point in all_points})
    seeds = " to ".join(str(count) for count in dict.fromkeys((counts[0], counts[-1])))
    model = next(row["model"] for row in records if row["kind"] == "round")
    top.set_title(f"Tickets of {model}: mean and standard deviation of {seeds} seeds", loc="left")
    figure.legend(*top.get_legend_handles_labels(), frameon=False, loc="outside right upper", fontsize=8.5)
    speed = timed[0].speed
    assert speed is not None
    workload = speed["workload"]
    note = (
        f"{machine_text(speed['environment'])}, {threads_text(workload['threads'])}, "
        f"batch {workload['batch']}, up to {max(workload['lengths'])} tokens"
    )
    figure.supxlabel(note, fontsize=7, color="0.35", x=0.01, ha="left")
    return figure


def _against_onednn(point: Point) -> float:
    assert point.speed is not None
    return float(point.speed["ratio"]["onednn"]["median"])
