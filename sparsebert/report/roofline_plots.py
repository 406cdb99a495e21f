"""Plots of the rates that the cost model predicts for layers on a GPU, under its roofline."""

from __future__ import annotations

import functools
import statistics
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sparsebert.cost.work import moved_bytes, useful_flops
from sparsebert.report.format import Record, span_text
from sparsebert.report.picture import Picture
from sparsebert.report.plots import COLOURS, MARKERS, new_figure
from sparsebert.report.roofline_tables import BOUNDS, NOTE, SHOWN
from sparsebert.report.table import Table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Bytes of an activation in bf16.
_ITEM = 2
_DENSE = "dense"


@dataclass(frozen=True)
class ModelledLayer:
    """A layer as the cost model predicts it.

    Attributes:
        series: "dense", or the sparsity.
        name: Layer and tokens.
        intensity: Useful FLOP per byte of weights and activations.
        rate: Useful FLOP/s.
        possible: FLOP/s at this intensity, if nothing but the matrix units and the memory bounded it.
        bound: What bounds it, in words; empty for the dense layer.
    """

    series: str
    name: str
    intensity: float
    rate: float
    possible: float
    bound: str


def modelled_layers(rows: Iterable[Record]) -> list[ModelledLayer]:
    """Return the layers of one device in the blocks of ``SHOWN``, dense ones first, then by sparsity."""
    shown = [row for row in rows if list(row["block"]) == SHOWN[1]]
    sparsities = sorted({row["sparsity"] for row in shown})
    dense = [_layer(row, dense=True) for row in shown if row["sparsity"] == sparsities[0]]
    ordered = sorted(shown, key=lambda row: float(row["sparsity"]))
    return [*dense, *(_layer(row, dense=False) for row in ordered)]


def _layer(row: Record, *, dense: bool) -> ModelledLayer:
    out, inner = row["shape"]
    weights = out * inner if dense else row["useful_weights"]
    flops = useful_flops(weights, row["tokens"])
    nbytes = row["dense_weight_bytes" if dense else "weight_bytes"]
    moved = moved_bytes(nbytes, out + inner, row["tokens"], _ITEM)
    limits = row["limits"]
    return ModelledLayer(
        _DENSE if dense else f"{row['sparsity']:.0%} sparse",
        f"{row['layer']}, {row['tokens']} tokens",
        flops / moved,
        flops / (row["dense_us" if dense else "us"] * 1e-6),
        min(limits["matmul"], limits["memory"] * flops / moved),
        "" if dense else BOUNDS[row["bound"]],
    )


def modelled_pictures(records: Iterable[Record]) -> list[Picture]:
    """Return a picture for each device; records of older versions, without its limits, have none."""
    devices: dict[tuple[str, str], list[Record]] = {}
    for row in records:
        if row["kind"] == "roofline" and "limits" in row:
            devices.setdefault((row["device"], row["source"]), []).append(row)
    pictures = []
    for (device, source), rows in devices.items():
        layers = modelled_layers(rows)
        if layers:
            height, width = SHOWN[1]
            title = f"Modelled, not measured: layers in {height}x{width} blocks on {device}"
            caption = (
                f"{NOTE.format(device=device, source=source)} Useful: of kept weights only. A point above "
                "the line of the memory has its activations in the L2 cache."
            )
            draw = functools.partial(modelled_figure, title, rows[0]["limits"], layers)
            pictures.append(Picture(title, f"{title}. {_message(layers)}", draw, caption, _numbers(layers)))
    return pictures


def modelled_figure(title: str, limits: Record, layers: Sequence[ModelledLayer]) -> Figure:
    """Return the plot of useful FLOP/s against useful FLOP per byte, under the limits of the device.

    Raises:
        ValueError: matplotlib is not installed.
    """
    figure, axes = new_figure()
    low, high = min(each.intensity for each in layers) / 2, max(each.intensity for each in layers) * 2
    peak = limits["matmul"]
    for name, words, dashes in (("memory", "from memory", "-"), ("l2", "from the L2 cache", "--")):
        bandwidth = limits[name]
        xs = [low, min(max(peak / bandwidth, low), high), high]
        ys = [min(peak, bandwidth * x) / 1e12 for x in xs]
        label = f"limit, {words}: {bandwidth / 1e12:g} TB/s"
        axes.plot(xs, ys, dashes, color="0.3", linewidth=1, label=label)
    for number, series in enumerate(dict.fromkeys(each.series for each in layers)):
        members = [each for each in layers if each.series == series]
        axes.scatter(
            [each.intensity for each in members],
            [each.rate / 1e12 for each in members],
            s=26,
            color=COLOURS[number % len(COLOURS)],
            marker=MARKERS[number % len(MARKERS)],
            alpha=0.85,
            label=series,
        )
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel("useful FLOP per byte of weights and activations")
    axes.set_ylabel("modelled useful TFLOP/s")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter("{x:g}")
    style: dict[str, Any] = {"textcoords": "offset points", "fontsize": 8, "color": "0.3", "ha": "right"}
    axes.annotate(f"{peak / 1e12:g} TFLOP/s", (high, peak / 1e12), (0, 4), **style)
    axes.set_title(title, loc="left", fontsize=11)
    axes.legend(frameon=False, fontsize=8, loc="lower right")
    return figure


def _message(layers: Sequence[ModelledLayer]) -> str:
    """Return the rates of each series, and what bounds the sparse layers, in words."""
    texts = []
    for series in dict.fromkeys(each.series for each in layers):
        members = [each for each in layers if each.series == series]
        rates = span_text((each.rate / 1e12 for each in members), ".0f")
        shares = statistics.median(each.rate / each.possible for each in members)
        texts.append(f"{series} {rates} (median {shares:.0%})")
    counts = Counter(each.bound for each in layers if each.bound)
    bounds = ", ".join(f"{bound} ({count})" for bound, count in counts.most_common())
    return (
        "Useful TFLOP/s, and the median share of what memory and matrix units allow: "
        f"{'; '.join(texts)}. The sparse layers are bound by: {bounds}."
    )


def _numbers(layers: Sequence[ModelledLayer]) -> Table:
    columns = ("series", "layer", "flop_per_byte", "modelled_flops", "possible_flops", "bound")
    rows = tuple(
        (
            each.series,
            each.name,
            *(f"{value:.6g}" for value in (each.intensity, each.rate, each.possible)),
            each.bound,
        )
        for each in layers
    )
    return Table("", columns, rows)
