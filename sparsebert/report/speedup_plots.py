"""Plots of speed-up against sparsity, with the break-even."""

from __future__ import annotations

import functools
import os
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from sparsebert.report.break_even import (
    Curve,
    break_even,
    break_even_sentence,
    curves,
    dense_reference,
)
from sparsebert.report.format import Record, baseline_name, machine_text, span_text, threads_text
from sparsebert.report.model_tables import sweeps
from sparsebert.report.picture import Picture
from sparsebert.report.plain_text import figure_text
from sparsebert.report.plots import line_style, new_figure, save_figure
from sparsebert.report.table import Table

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Least width of an axis of sparsity, in percent: granularities reach one sparsity up to a few weights.
MIN_SPAN = 2.0
# Characters of a label of which two stand side by side, and inches of a row of labels.
_LONGEST_HALF, _LEGEND_ROW = 48, 0.17
_TICKS = (0.25, 0.5, 0.75, 1, 1.5, 2, 3, 4, 6, 8, 12, 16, 24)


def speedup_plot(records: Iterable[Record], path: str | os.PathLike[str]) -> None:
    """Write ``speedup_figure`` to a file; raises like it and ``save_figure``."""
    save_figure(speedup_figure(records), path)


def speedup_figure(records: Iterable[Record]) -> Figure:
    """Return the plot of speed-up against sparsity for each granularity, format and tolerance.

    Full lines are against the fastest dense form, dashed ones against eager PyTorch; the band is p20 to p80
    of the paired ratios. The break-even with the fastest dense form is marked.

    Raises:
        ValueError: The records have no ratio of the sparse side, or matplotlib is not installed.
    """
    drawn = curves(records)
    reference = dense_reference(drawn)
    if reference is None:
        raise ValueError("nothing to plot: no record of the sparse side with a ratio to a dense one")
    figure, axes = new_figure()
    for number, curve in enumerate(drawn):
        _speedup_lines(axes, curve, reference, number)
    axes.axhline(1, color="0.3", linewidth=1)
    axes.set_yscale("log", base=2)
    low, high = axes.get_ylim()
    ticks = [tick for tick in _TICKS if low <= tick <= high]
    axes.set_yticks(ticks, [f"{tick:g}x" for tick in ticks])
    axes.minorticks_off()
    left, right = axes.get_xlim()
    if right - left < MIN_SPAN:
        middle = (left + right) / 2
        axes.set_xlim(middle - MIN_SPAN / 2, middle + MIN_SPAN / 2)
    axes.set_xlabel("sparsity of the pruned matrices (%)")
    axes.set_ylabel("speed-up of the whole model")
    ours = [row for curve in drawn for row in curve.records]
    figure.suptitle(_size_text(ours[0]["workload"]), x=0.01, ha="left")
    _legend(figure, axes)
    _footnote(figure, ours)
    return figure


def speedup_pictures(records: Sequence[Record]) -> list[Picture]:
    """Return a picture for each workload of ``sparsebert.report.model_tables.sweeps``."""
    pictures = []
    for rows in sweeps(records):
        drawn = curves(rows)
        reference = dense_reference(drawn)
        if reference is None:
            continue
        ours = [row for curve in drawn for row in curve.records]
        names = "; ".join(curve.name for curve in drawn)
        shares = span_text((row["ticket"]["sparsity"] for row in ours), ".0%")
        ends = "; ".join(_ends(curve, reference) for curve in drawn if curve.points(reference))
        environment = ours[0]["environment"]
        words = break_even_sentence(drawn, environment)
        alt = f"Speed-up against sparsity, {names}, {shares}. {words} {_upper(ends)}."
        caption = (
            f"{machine_text(environment)}, {threads_text(ours[0]['workload']['threads'])}. Medians of paired "
            f"rounds, band: p20 to p80; full lines: against {baseline_name(reference, environment)}, the "
            f"fastest dense form; ring: break-even. {words}"
        )
        pictures.append(
            Picture(
                f"Speed-up: {_size_text(ours[0]['workload'])}",
                alt,
                functools.partial(speedup_figure, rows),
                caption,
                _numbers(drawn),
            )
        )
    return pictures


def _size_text(workload: Record) -> str:
    size = f"batch {workload['batch']}, {max(workload['lengths'])} tokens"
    return f"{workload['model']}, {size}, {workload['dtype']}"


def _ends(curve: Curve, reference: str) -> str:
    """Return the first and the last speed-up of a curve in words."""
    (low, first), *_, (high, last) = [*curve.points(reference)[:1], *curve.points(reference)]
    start = f"{curve.name} {first:.2f}x at {low:.0f} %"
    return start if low == high else f"{start} to {last:.2f}x at {high:.0f} %"


def _upper(text: str) -> str:
    return text[:1].upper() + text[1:]


def _speedup_lines(axes: Axes, curve: Curve, reference: str, number: int) -> None:
    style = line_style(number)
    crossing = break_even(curve.points(reference))
    for baseline in dict.fromkeys((reference, "eager")):
        rows = [row for row in curve.records if baseline in row["ratio"]]
        if not rows:
            continue
        sparsities = [100 * row["ticket"]["sparsity"] for row in rows]
        ratios = [row["ratio"][baseline] for row in rows]
        label = f"{curve.name}, against {baseline_name(baseline, rows[0]['environment'])}"
        if crossing is not None and baseline == reference:
            label += f": break-even {crossing:.0f} %"
        # The legend of a single point shows no line: eager PyTorch's is hollow.
        dashes = "none" if len(rows) == 1 else "-" if baseline == reference else "--"
        fill = style["color"] if baseline == reference else "none"
        axes.plot(
            sparsities,
            [ratio["median"] for ratio in ratios],
            **style | {"linestyle": dashes, "markerfacecolor": fill},
            label=figure_text(label),
        )
        axes.fill_between(
            sparsities,
            [ratio.get("p20", ratio["median"]) for ratio in ratios],
            [ratio.get("p80", ratio["median"]) for ratio in ratios],
            color=style["color"],
            alpha=0.15,
            linewidth=0,
        )
    if crossing is not None:
        axes.plot([crossing], [1], marker="o", markersize=10, markerfacecolor="none", color=style["color"])


def _legend(figure: Figure, axes: Axes) -> None:
    """Put the legend above the axes: curves reach every corner, and the line of 1x spans them."""
    handles, labels = axes.get_legend_handles_labels()
    columns = 2 if len(labels) > 1 and max(map(len, labels)) <= _LONGEST_HALF else 1
    figure.set_figheight(figure.get_figheight() + _LEGEND_ROW * -(-len(labels) // columns))
    axes.legend(
        handles, labels, frameon=False, fontsize=8, ncols=columns, loc="lower left", bbox_to_anchor=(0, 1)
    )


def _numbers(drawn: Sequence[Curve]) -> Table:
    columns = ("format", "sparsity", "reference", "speedup", "speedup_p20", "speedup_p80", "busy")
    rows = tuple(
        (
            curve.name,
            f"{row['ticket']['sparsity']:.6g}",
            reference,
            *(f"{ratio[name]:.6g}" if name in ratio else "" for name in ("median", "p20", "p80")),
            str(row["busy"]).lower(),
        )
        for curve in drawn
        for row in curve.records
        for reference, ratio in row["ratio"].items()
    )
    return Table("", columns, rows)


def _footnote(figure: Figure, records: Sequence[Record]) -> None:
    first = records[0]
    machine, threads = machine_text(first["environment"]), threads_text(first["workload"]["threads"])
    text = f"{machine}, {threads}; paired medians, band p20 to p80"
    if any(record["busy"] for record in records):
        text += "\nTHE MACHINE WAS TOO BUSY: do not quote"
    figure.supxlabel(text, fontsize=7, color="0.35", x=0.01, ha="left")
