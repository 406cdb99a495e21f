"""Plots of training runs: the metric of each round against its sparsity."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from sparsebert.report.format import Record, counted, machine_text, span_text
from sparsebert.report.plots import COLOURS, MARKERS, Picture, new_figure
from sparsebert.tasks.metrics import primary
from sparsebert.tasks.registry import TASKS
from sparsebert.tasks.verdict import summary

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_LINES = ("-", "--", ":")


def run_pictures(records: Iterable[Record]) -> list[Picture]:
    """Return a picture of the rounds of each task and model, from "round" records."""
    groups: dict[tuple[str, str], list[Record]] = {}
    for row in records:
        if row["kind"] == "round":
            groups.setdefault((row["task"], row["model"]), []).append(row)
    pictures = []
    for (task, model), rounds in groups.items():
        metric, names = _metric(rounds[0]), ", ".join(_series(rounds))
        shares = span_text((row["sparsity"] for row in rounds), ".0%")
        alt = f"{metric} against sparsity, {names}, {shares} sparse. The table of rounds holds the figures."
        title = f"Rounds of {model} on {task}: {metric} against sparsity"
        pictures.append(Picture(title, alt, functools.partial(run_figure, rounds)))
    return pictures


def run_figure(rounds: Sequence[Record]) -> Figure:
    """Return the plot of the rounds of one task and model: mean and standard deviation over seeds.

    Args:
        rounds: The "round" records.

    Raises:
        ValueError: matplotlib is not installed.
    """
    figure, axes = new_figure()
    metric = _metric(rounds[0])
    shares = all(0 <= row["metrics"][metric] <= 1 for row in rounds)
    scale = 100 if shares else 1
    if dense := [scale * row["metrics"][metric] for row in rounds if not row["sparsity"]]:
        mean = summary(dense)
        axes.axhline(mean.mean, color="0.3", linewidth=1, label="dense")
        if mean.std:
            axes.axhspan(mean.mean - mean.std, mean.mean + mean.std, color="0.3", alpha=0.12, linewidth=0)
    for number, (name, points) in enumerate(_series(rounds).items()):
        again, place = divmod(number, len(COLOURS))
        summaries = [summary([row["metrics"][metric] for row in rows]) for rows in points.values()]
        axes.errorbar(
            [100 * summary([row["sparsity"] for row in rows]).mean for rows in points.values()],
            [scale * each.mean for each in summaries],
            [scale * (each.std or 0.0) for each in summaries],
            color=COLOURS[place],
            marker=MARKERS[(place + again) % len(MARKERS)],
            linestyle=_LINES[again % len(_LINES)],
            markersize=5,
            capsize=3,
            label=name,
        )
    axes.set_xlabel("sparsity of the prunable weights (%)")
    axes.set_ylabel(f"{rounds[0]['task']}, {metric}{' (%)' if shares else ''}")
    seeds = counted(len({row["seed"] for row in rounds}), "seed")
    axes.set_title(f"{rounds[0]['model']} on {rounds[0]['task']}: {seeds}", loc="left")
    axes.legend(frameon=False, loc="best")
    machines = dict.fromkeys(_machine(row) for row in rounds)
    figure.supxlabel("\n".join(machines), fontsize=7, color="0.35", x=0.01, ha="left")
    return figure


def _series(rounds: Sequence[Record]) -> Mapping[str, dict[int, list[Record]]]:
    """Return for each run its records by round; several runs of one method have the name of their folder."""
    runs: dict[tuple[str, str], dict[int, list[Record]]] = {}
    for row in rounds:
        by_round = runs.setdefault((row["method"], row.get("run") or ""), {})
        by_round.setdefault(row["round"], []).append(row)
    methods = [method for method, _ in runs]
    return {
        f"{method}, {run}" if run and methods.count(method) > 1 else method: by_round
        for (method, run), by_round in runs.items()
    }


def _metric(row: Record) -> str:
    """Return the primary metric of a round's task; of the user's tasks, the first metric."""
    return primary(row["task"]) if row["task"] in TASKS else next(iter(row["metrics"]))


def _machine(row: Record) -> str:
    environment = row.get("environment")
    return machine_text(environment) if environment else "machine not recorded"
