"""Tables and pictures of ``sparsebert arena``: quality against time, with the Pareto front."""

from __future__ import annotations

import functools
import textwrap
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from sparsebert.report.format import (
    BUSY_NOTE,
    MISSING,
    Record,
    baseline_name,
    counted,
    machine_text,
    megabytes,
    rate,
    ratio_text,
    workload_title,
)
from sparsebert.report.picture import Picture
from sparsebert.report.plots import COLOURS, MARKERS, new_figure
from sparsebert.report.point_labels import label_points
from sparsebert.report.table import Cell, Table

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def arena_tables(records: Iterable[Record]) -> list[Table]:
    """Return a table for each comparison, forms from the slowest to the fastest."""
    return [_table(rows) for rows in comparisons(records)]


def arena_pictures(records: Sequence[Record]) -> list[Picture]:
    """Return a picture of each comparison."""
    pictures = []
    for rows in comparisons(records):
        front = ", ".join(row["form"] for row in rows if row["front"])
        alt = (
            f"{quality_name(rows[0])} against milliseconds for {counted(len(rows), 'form')} of "
            f"{rows[0]['workload']['model']}; on the Pareto front: {front}. The table holds the figures."
        )
        title = f"Quality and speed: {rows[0]['workload']['model']}"
        pictures.append(Picture(title, alt, functools.partial(arena_figure, rows)))
    return pictures


def comparisons(records: Iterable[Record]) -> list[list[Record]]:
    """Return the records of each comparison, the latest of each form, slowest first."""
    groups: dict[str, dict[str, Record]] = {}
    for row in records:
        if row["kind"] == "arena":
            group = groups.setdefault(str((row["workload"], row["measure"])), {})
            group.pop(row["form"], None)
            group[row["form"]] = row
    return [
        sorted(group.values(), key=lambda row: -float(row["latency_ms"]["median"]))
        for group in groups.values()
    ]


def arena_figure(rows: Sequence[Record]) -> Figure:
    """Return the plot of a comparison's quality against time, with the Pareto front as a line.

    Raises:
        ValueError: matplotlib is not installed.
    """
    figure, axes = new_figure()
    for index, (label, ours) in enumerate((("other libraries", False), ("sparsebert", True))):
        group = [row for row in rows if row["ours"] is ours]
        axes.plot(
            [row["latency_ms"]["median"] for row in group],
            [row["quality"]["keep"] for row in group],
            MARKERS[index],
            color=COLOURS[index],
            label=label,
        )
    front = sorted((row["latency_ms"]["median"], row["quality"]["keep"]) for row in rows if row["front"])
    axes.plot(*zip(*front, strict=True), color="0.5", linewidth=1, zorder=0, label="Pareto front")
    axes.margins(x=0.15, y=0.12)
    axes.set_xlim(left=0)
    axes.set_xlabel(f"ms for a batch of {rows[0]['workload']['batch']}")
    axes.set_ylabel(textwrap.fill(quality_name(rows[0]), 60))
    environment = machine_text(rows[0]["environment"])
    axes.set_title(f"{workload_title(rows[0]['workload'])}\n{environment}", fontsize=8, loc="left")
    axes.legend(frameon=False, fontsize=8)
    points = [(row["latency_ms"]["median"], row["quality"]["keep"]) for row in rows]
    label_points(axes, points, [baseline_name(row["form"], rows[0]["environment"]) for row in rows])
    return figure


def _table(rows: Sequence[Record]) -> Table:
    first = rows[0]
    environment = first["environment"]
    baseline = next(iter(first["ratio"]), None)
    columns: dict[str, Cell] = {
        "form": lambda row: baseline_name(row["form"], environment),
        first["measure"]: lambda row: f"{row['quality']['value']:.4f}",
    }
    if first["labels"]:
        columns["kept"] = lambda row: f"{row['quality']['keep']:.1%}"
    columns |= {
        "ms": lambda row: f"{row['latency_ms']['median']:.1f}{_doubt(row)}",
        "texts/s": lambda row: rate(row["samples_per_s"]),
        "sparsity": lambda row: MISSING if row["sparsity"] is None else f"{row['sparsity']:.0%}",
        "MB": lambda row: megabytes(row["model_bytes"]),
        "front": lambda row: "*" if row["front"] else "",
    }
    if baseline is not None:
        columns[f"x {baseline_name(baseline, environment)}"] = lambda row: ratio_text(
            row["ratio"].get(baseline), _doubt(row)
        )
    what = "rows with labels" if first["labels"] else "texts"
    notes = [
        f"{machine_text(environment)}. Quality on {first['judged']} held-out {what}: {quality_name(first)}. "
        "* = on the Pareto front: no form is better in both. Medians of paired rounds; encoder only, heads "
        "are not timed; MB of weights in memory.",
        *(f"Without {name}: {reason}." for name, reason in first["left_out"].items()),
    ]
    if any(row["busy"] for row in rows):
        notes.append(BUSY_NOTE)
    return Table.of(f"Quality and speed: {workload_title(first['workload'])}", columns, rows, notes)


def quality_name(row: Record) -> str:
    """Return the quality that a comparison keeps, in words."""
    if row["labels"]:
        return (
            f"{row['measure']} above a constant guess, as a share of the dense model's (lower end of a 90 % "
            "interval)"
        )
    return "mean cosine to the outputs of the dense model"


def _doubt(row: Record) -> str:
    return "?" if row["busy"] else ""
