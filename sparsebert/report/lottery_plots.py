"""Plots of accuracy against sparsity for each method, above the measured speed of the tickets."""

from __future__ import annotations

import functools
import os
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from sparsebert.report.format import Record, machine_text, span_text, threads_text, versions_text
from sparsebert.report.lottery_tables import NAMES, Point, points, share_text
from sparsebert.report.picture import Picture
from sparsebert.report.plots import line_style, new_panels, save_figure
from sparsebert.report.table import Table
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
    metric = metrics.primary(dense.task)
    speed = timed[0].speed
    assert speed is not None
    speeds = span_text(map(_against_onednn, timed), ".2f")
    alt = (
        f"Above, {metric} (%) on {dense.task} against sparsity. The dense model has "
        f"{share_text(dense.summary)}. {'; '.join(_courses(all_points, dense))}. Below, the measured speed "
        f"of the same tickets against oneDNN: {speeds} times as fast."
    )
    caption = (
        f"Mean and standard deviation (n - 1) over seeds. Speed: {_note(speed)}. "
        f"{versions_text(next(row['versions'] for row in records if row['kind'] == 'round'))}."
    )
    title = f"Tickets on {dense.task}: accuracy and speed against sparsity"
    draw = functools.partial(curve_figure, records)
    return [Picture(title, alt, draw, caption, _numbers(all_points))]


def _courses(all_points: Sequence[Point], dense: Point) -> list[str]:
    """Return the metric at the lowest and at the highest sparsity of each method, in words."""
    texts = []
    for label in dict.fromkeys(point.label for point in all_points if point is not dense):
        tickets = [point for point in all_points if point.label == label]
        ends = tickets[:1] + tickets[1:][-1:]
        shares = [f"{share_text(point.summary)} at {point.sparsity:.0%}" for point in ends]
        texts.append(f"{NAMES[label]} {' to '.join(shares)}")
    return texts


def _numbers(all_points: Sequence[Point]) -> Table:
    columns = (
        "method",
        "task",
        "sparsity",
        "metric",
        "mean",
        "standard_deviation",
        "seeds",
        "speedup_over_onednn",
    )
    rows = tuple(
        (
            NAMES[point.label],
            point.task,
            f"{point.sparsity:.6g}",
            metrics.primary(point.task),
            f"{point.summary.mean:.6g}",
            "" if point.summary.std is None else f"{point.summary.std:.6g}",
            str(len(point.values)),
            f"{_against_onednn(point):.6g}" if point.speed else "",
        )
        for point in all_points
    )
    return Table("", columns, rows)


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
    figure.supxlabel(_note(speed), fontsize=7, color="0.35", x=0.01, ha="left")
    return figure


def _against_onednn(point: Point) -> float:
    assert point.speed is not None
    return float(point.speed["ratio"]["onednn"]["median"])


def _note(speed: Record) -> str:
    """Return machine and workload of a "bench" record in words."""
    workload = speed["workload"]
    return (
        f"{machine_text(speed['environment'])}, {threads_text(workload['threads'])}, "
        f"batch {workload['batch']}, up to {max(workload['lengths'])} tokens"
    )
