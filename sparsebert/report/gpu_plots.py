"""Achieved against possible: every measured layer under the roofline of its device."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from sparsebert.report.plots import COLOURS, MARKERS, new_figure, save_figure
from sparsebert.report.wording import Record


@dataclass(frozen=True)
class Mark:
    """A layer in the picture: FLOP a byte that has to move, FLOP/s reached and possible."""

    name: str
    intensity: float
    achieved: float
    possible: float


def marks(rows: Sequence[Record], limits: Record) -> list[Mark]:
    """The packed layers of the records. What has to move fits the L2 cache or not, and so is its limit."""
    found = []
    for row in rows:
        if row["point"]["kind"] != "layer" or row["point"]["mode"] != "forward":
            continue
        intensity = row["flops"] / row["moved_bytes"]
        cached = row["moved_bytes"] < limits["device"]["l2_bytes"] / 2 and not row["point"]["cold"]
        bandwidth = limits["l2"] if cached else limits["memory"]
        possible = min(limits["matmul"]["bfloat16"], bandwidth * intensity)
        block = "x".join(map(str, row["point"]["block"]))
        found.append(Mark(block, intensity, row["tflops"] * 1e12, possible))
    return found


def roofline_plot(records: Iterable[Record], path: str | os.PathLike[str], *, dry_run: bool = False) -> None:
    """PNG of the latest device with limits and layers. Raises ValueError where there is none."""
    rows = [row for row in records if row["kind"] == "gpu" and row["device"]["dry_run"] == dry_run]
    limits = [row for row in rows if row["point"]["kind"] == "limits"]
    if not limits:
        raise ValueError("nothing to plot: no record of the device's limits")
    device = limits[-1]["device"]["name"]
    mine = {row["point"]["key"]: row for row in rows if row["device"]["name"] == device}
    shown = marks(list(mine.values()), limits[-1])
    if not shown:
        raise ValueError(f"nothing to plot: no layer was measured on {device}")
    figure, axes = new_figure()
    low, high = min(mark.intensity for mark in shown) / 2, max(mark.intensity for mark in shown) * 2
    peak = limits[-1]["matmul"]["bfloat16"]
    for name, style in (("memory", "-"), ("l2", "--")):
        bandwidth = limits[-1][name]
        ridge = min(max(peak / bandwidth, low), high)
        xs = [low, ridge, high]
        ys = [min(peak, bandwidth * x) / 1e12 for x in xs]
        label = {"memory": "limit, from memory", "l2": "limit, from the L2 cache"}[name]
        axes.plot(xs, ys, style, color="0.3", linewidth=1, label=label)
    blocks = list(dict.fromkeys(mark.name for mark in shown))
    for number, block in enumerate(blocks):
        own = [mark for mark in shown if mark.name == block]
        axes.scatter(
            [mark.intensity for mark in own],
            [mark.achieved / 1e12 for mark in own],
            s=16,
            alpha=0.7,
            color=COLOURS[number % len(COLOURS)],
            marker=MARKERS[number // len(COLOURS) % len(MARKERS)],
            label=block,
        )
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel("useful FLOP a byte that has to move")
    axes.set_ylabel("useful TFLOP/s")
    axes.set_title(f"Packed panels on {device}", loc="left")
    axes.legend(frameon=False, fontsize=7, ncols=2)
    save_figure(figure, path)
