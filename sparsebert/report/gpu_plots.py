"""Plots of achieved against possible speed: measured layers under the roofline of their device."""

from __future__ import annotations

import functools
import os
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sparsebert.report.format import Record, span_text
from sparsebert.report.picture import Picture
from sparsebert.report.plots import COLOURS, MARKERS, new_figure, save_figure
from sparsebert.report.table import Table

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Mark:
    """A layer in the plot: its name, FLOP per byte, and FLOP/s achieved and possible."""

    name: str
    intensity: float
    achieved: float
    possible: float


def marks(rows: Sequence[Record], limits: Record) -> list[Mark]:
    """Return the marks of packed layers; data that fits into the L2 cache is limited by its bandwidth."""
    layers = []
    for row in rows:
        if row["point"]["kind"] != "layer" or row["point"]["mode"] != "forward":
            continue
        intensity = row["flops"] / row["moved_bytes"]
        cached = row["moved_bytes"] < limits["device"]["l2_bytes"] / 2 and not row["point"]["cold"]
        bandwidth = limits["l2"] if cached else limits["memory"]
        possible = min(limits["matmul"]["bfloat16"], bandwidth * intensity)
        block = "x".join(map(str, row["point"]["block"]))
        layers.append(Mark(block, intensity, row["tflops"] * 1e12, possible))
    return layers


def roofline_plot(records: Iterable[Record], path: str | os.PathLike[str], *, dry_run: bool = False) -> None:
    """Write ``roofline_figure`` to a file; raises like it and ``save_figure``."""
    save_figure(roofline_figure(records, dry_run=dry_run), path)


def roofline_pictures(records: Sequence[Record]) -> list[Picture]:
    """Return a picture for each device with limits and layers."""
    pictures = []
    for name in dict.fromkeys(row["device"]["name"] for row in records if row["kind"] == "gpu"):
        rows = [row for row in records if row["kind"] == "gpu" and row["device"]["name"] == name]
        try:
            _, shown = _limits_and_marks(rows, dry_run=False)
        except ValueError:
            continue
        blocks = ", ".join(dict.fromkeys(mark.name for mark in shown))
        rates = span_text((mark.achieved / 1e12 for mark in shown), ".3g")
        share = statistics.median(mark.achieved / mark.possible for mark in shown)
        alt = (
            f"Useful TFLOP/s of {len(shown)} measured layers under the roofline of {name}, "
            f"packed in blocks of {blocks}: {rates} TFLOP/s, a median of {share:.0%} of what is possible."
        )
        title = f"Achieved against possible: {name}"
        draw = functools.partial(roofline_figure, rows)
        pictures.append(Picture(title, alt, draw, "Measured; useful: of kept weights only.", _numbers(shown)))
    return pictures


def _numbers(shown: Sequence[Mark]) -> Table:
    columns = ("block", "flop_per_byte", "achieved_flops", "possible_flops")
    rows = tuple(
        (mark.name, *(f"{value:.6g}" for value in (mark.intensity, mark.achieved, mark.possible)))
        for mark in shown
    )
    return Table("", columns, rows)


def roofline_figure(records: Iterable[Record], *, dry_run: bool = False) -> Figure:
    """Return the roofline plot of the latest device.

    Raises:
        ValueError: There is no device with limits and layers, or matplotlib is not installed.
    """
    limits, shown = _limits_and_marks(records, dry_run)
    device = limits["device"]["name"]
    figure, axes = new_figure()
    low, high = min(mark.intensity for mark in shown) / 2, max(mark.intensity for mark in shown) * 2
    peak = limits["matmul"]["bfloat16"]
    for name, style in (("memory", "-"), ("l2", "--")):
        bandwidth = limits[name]
        ridge = min(max(peak / bandwidth, low), high)
        xs = [low, ridge, high]
        ys = [min(peak, bandwidth * x) / 1e12 for x in xs]
        label = {"memory": "limit, from memory", "l2": "limit, from the L2 cache"}[name]
        axes.plot(xs, ys, style, color="0.3", linewidth=1, label=label)
    blocks = list(dict.fromkeys(mark.name for mark in shown))
    for number, block in enumerate(blocks):
        layers = [mark for mark in shown if mark.name == block]
        axes.scatter(
            [mark.intensity for mark in layers],
            [mark.achieved / 1e12 for mark in layers],
            s=16,
            alpha=0.7,
            color=COLOURS[number % len(COLOURS)],
            marker=MARKERS[number // len(COLOURS) % len(MARKERS)],
            label=block,
        )
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel("useful FLOP per byte")
    axes.set_ylabel("useful TFLOP/s")
    axes.set_title(f"Packed panels on {device}", loc="left")
    axes.legend(frameon=False, fontsize=7, ncols=2)
    return figure


def _limits_and_marks(records: Iterable[Record], dry_run: bool) -> tuple[Record, list[Mark]]:
    """Return the limits of the latest device and its layers."""
    rows = [row for row in records if row["kind"] == "gpu" and row["device"]["dry_run"] == dry_run]
    limits = [row for row in rows if row["point"]["kind"] == "limits"]
    if not limits:
        raise ValueError("nothing to plot: no record of the device's limits")
    device = limits[-1]["device"]["name"]
    mine = {row["point"]["key"]: row for row in rows if row["device"]["name"] == device}
    shown = marks(list(mine.values()), limits[-1])
    if not shown:
        raise ValueError(f"nothing to plot: no layer was measured on {device}")
    return limits[-1], shown
