"""Tables and plots of ``benchmarks.serving``: fused models as a server runs them."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from sparsebert.report.format import BUSY_NOTE, Record, machine_text
from sparsebert.report.picture import Picture
from sparsebert.report.plots import COLOURS, MARKERS, new_figure
from sparsebert.report.table import Cell, Table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_LINES: dict[str, Cell] = {
    "time against": lambda row: row["vary"],
    "from": lambda row: f"{row['points'][0][0]:g}",
    "to": lambda row: f"{row['points'][-1][0]:g}",
    "first ms": lambda row: f"{row['points'][0][1]:.3g}",
    "last ms": lambda row: f"{row['points'][-1][1]:.3g}",
    "constant ms": lambda row: f"{row['constant_ms']:.3g}",
    "largest distance": lambda row: f"{row['deviation']:.1%}{_doubt(row)}",
}
_LATENCY: dict[str, Cell] = {
    "tokens": lambda row: str(row["tokens"]),
    "calls": lambda row: f"{row['calls']:,}",
    "p50 ms": lambda row: f"{row['p50_ms']:.2f}{_doubt(row)}",
    "p99 ms": lambda row: f"{row['p99_ms']:.2f}{_doubt(row)}",
    "longest ms": lambda row: f"{row['longest_ms']:.2f}",
}
_BATCHES: dict[str, Cell] = {
    "side": lambda row: row["side"],
    "seconds": lambda row: f"{row['seconds']:.2f}",
    "sentences/s": lambda row: f"{row['sentences'] / row['seconds']:.1f}",
    "tokens": lambda row: f"{row['tokens']:,}",
    "with padding": lambda row: f"{row['padded_tokens']:,}",
    "time over fused": lambda row: f"{row['speedup']:.2f}x{_doubt(row)}",
}
_THREADS: dict[str, Cell] = {
    "batch": lambda row: str(row["batch"]),
    "one thread ms": lambda row: f"{row['one_ms']:.1f}",
    "threads": lambda row: str(row["threads"]),
    "ms": lambda row: f"{row['many_ms']:.1f}",
    "speed-up": lambda row: f"{row['speedup']:.2f}x{_doubt(row)}",
}
# Part of the benchmark -> title, columns, and what to know.
_PARTS: dict[str, tuple[str, dict[str, Cell], str]] = {
    "line": (
        "Time of a fused model against tokens, density and layers",
        _LINES,
        "hidden size 384, fp32, element format, one thread; the distance from the straight line with the "
        "least squares of relative errors, as a share of the time",
    ),
    "latency": (
        "Latency of one sentence",
        _LATENCY,
        "MiniLM, 90 % element-sparse, fp32, fused; one thread, one call after another, tokenizer included",
    ),
    "batches": (
        "SST-2 sentences as they come",
        _BATCHES,
        "BERT-base, 90 % element-sparse, fp32, fused, against the masked dense model in torch, padded to the "
        "longest sentence of a batch; one thread, batches in turn",
    ),
    "threads": (
        "Threads of a fused model",
        _THREADS,
        "BERT-base, 90 % element-sparse, fp32, 128 tokens a sequence; medians of paired rounds",
    ),
}


def serving_tables(records: Iterable[Record]) -> list[Table]:
    """Return a table of each part, from the latest "serving" records."""
    latest = _latest(records)
    tables = []
    for part, (title, columns, about) in _PARTS.items():
        if not (rows := [row for row in latest if row["part"] == part]):
            continue
        notes = [f"{machine_text(rows[0]['environment'])}: {about}."]
        if any(row["busy"] for row in rows):
            notes.append(BUSY_NOTE)
        tables.append(Table.of(title, columns, rows, notes))
    return tables


def line_pictures(records: Sequence[Record]) -> list[Picture]:
    """Return a picture of each straight line, from the latest "serving" records."""
    pictures = []
    for row in _latest(records):
        if row["part"] == "line":
            alt = (
                f"Milliseconds of a fused model against {row['vary']}, {len(row['points'])} measured points "
                f"and the straight line through them; the largest distance is {row['deviation']:.1%}."
            )
            title = f"Time against {row['vary']}"
            pictures.append(Picture(title, alt, functools.partial(line_figure, row)))
    return pictures


def line_figure(row: Record) -> Figure:
    """Return the plot of one "line" record: measured times, the line, and 15 % around it.

    Raises:
        ValueError: matplotlib is not installed.
    """
    figure, axes = new_figure()
    places = [place for place, _ in row["points"]]
    line = [row["constant_ms"] + row["slope_ms"] * place for place in places]
    axes.fill_between(
        places, [0.85 * each for each in line], [1.15 * each for each in line], color=COLOURS[0], alpha=0.12
    )
    axes.plot(places, line, color=COLOURS[0], linewidth=1, label="straight line, and 15 % around it")
    times = [milliseconds for _, milliseconds in row["points"]]
    axes.plot(places, times, MARKERS[0], color=COLOURS[1], label="measured")
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel(row["vary"])
    axes.set_ylabel("ms")
    usual = ", ".join(f"{name} {value:g}" for name, value in row["usual"].items())
    axes.set_title(f"Time against {row['vary']} ({usual})\n{machine_text(row['environment'])}", fontsize=10)
    axes.legend()
    return figure


def _latest(records: Iterable[Record]) -> list[Record]:
    """Return the last record of each figure, in the order in which the figures first appear."""
    latest: dict[tuple[object, ...], Record] = {}
    for row in records:
        if row["kind"] == "serving":
            latest[row["part"], *(row.get(name) for name in ("vary", "side", "batch"))] = row
    return list(latest.values())


def _doubt(row: Record) -> str:
    return "?" if row["busy"] else ""
