"""Tables and pictures of ``benchmarks.lottery.start``: what a start ticket saves on a real task."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from sparsebert.report.format import Record, machine_text, span_text, versions_text
from sparsebert.report.lottery_tables import NAMES
from sparsebert.report.picture import Picture
from sparsebert.report.plots import save_figure
from sparsebert.report.run_cost_plots import cost_pictures
from sparsebert.report.run_plots import cost_figure, run_pictures
from sparsebert.report.start_tables import start_table
from sparsebert.report.table import Table

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def benchmark_start_tables(records: Iterable[Record]) -> list[Table]:
    """Return the table of what each run spends until its sparsity, with and without a start ticket."""
    rounds = _rounds(records)
    if not rounds:
        return []
    rates = {row["learning_rate"] for row in rounds}
    notes = [
        f"{span_text((row['steps'] for row in rounds), 'd')} steps a round, learning rate "
        f"{span_text(rates, 'g')}, seeds {', '.join(map(str, sorted({row['seed'] for row in rounds})))}. "
        f"{versions_text(rounds[-1]['versions'])}, {machine_text(rounds[-1]['environment'])}.",
    ]
    return [start_table(_title(rounds), rounds, notes)]


def benchmark_start_pictures(records: Iterable[Record]) -> list[Picture]:
    """Return the picture of the metric against the steps of each run."""
    rounds = _rounds(records)
    if not rounds:
        return []
    # The same picture as that of a user's runs, under the benchmark's title.
    *_, picture = run_pictures(rounds)
    return [replace(picture, title=_title(rounds)), *cost_pictures(rounds)]


def start_plot(records: Iterable[Record], path: str | os.PathLike[str]) -> None:
    """Write the picture to a file; raises as ``cost_figure`` and ``save_figure``."""
    figure: Figure = cost_figure(_rounds(records))
    save_figure(figure, path)


def _rounds(records: Iterable[Record]) -> list[Record]:
    """Return the rounds of the benchmark; runs that differ only in their steps are told apart by them."""
    return [
        row | {"method": NAMES[row["label"]], "run": f"{row['steps']} steps"}
        for row in records
        if row["kind"] == "round" and row["part"] == "start"
    ]


def _title(rounds: Sequence[Record]) -> str:
    return f"Spent until a sparsity: {rounds[0]['model']} on {rounds[0]['task']}"
