"""Plots of training runs: the metric of each round against its sparsity, and against the steps it took."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from sparsebert.report.format import Record, counted, machine_text, mean_text, span_text
from sparsebert.report.picture import Picture
from sparsebert.report.plain_text import figure_text
from sparsebert.report.plots import line_style, new_figure
from sparsebert.report.point_labels import label_points
from sparsebert.report.run_series import costs, dense_rounds, metric_of, series
from sparsebert.report.table import Table
from sparsebert.tasks.verdict import summary

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def run_pictures(records: Iterable[Record]) -> list[Picture]:
    """Return a picture of the rounds of each task and model, from "round" records.

    If some runs have a start ticket, a second one shows what they save.
    """
    groups: dict[tuple[str, str], list[Record]] = {}
    for row in records:
        if row["kind"] == "round":
            groups.setdefault((row["task"], row["model"]), []).append(row)
    pictures = []
    for (task, model), rounds in groups.items():
        metric, runs = metric_of(rounds[0]), series(rounds)
        shares = span_text((row["sparsity"] for row in rounds), ".0%")
        values = "; ".join(f"{name} {_ends(by_round, metric)}" for name, by_round in runs.items())
        caption = (
            f"Mean and standard deviation (n - 1) over {_seeds_text(rounds)}. "
            f"{'; '.join(dict.fromkeys(map(_machine, rounds)))}."
        )
        numbers = _numbers(rounds)
        alt = f"{metric} against sparsity, {', '.join(runs)}, {shares} sparse: {values}."
        title = f"Rounds of {model} on {task}: {metric} against sparsity"
        pictures.append(Picture(title, alt, functools.partial(run_figure, rounds), caption, numbers))
        if any(row.get("start_ticket") for row in rounds):
            alt = f"{metric} against optimizer steps: {values}."
            title = f"Rounds of {model} on {task}: {metric} against steps"
            pictures.append(Picture(title, alt, functools.partial(cost_figure, rounds), caption, numbers))
    return pictures


def _ends(by_round: Mapping[int, list[Record]], metric: str) -> str:
    """Return the metric of a run's first and last round in words."""
    ends = dict.fromkeys((min(by_round), max(by_round)))
    texts = []
    for rows in (by_round[number] for number in ends):
        values = summary([row["metrics"][metric] for row in rows])
        share = summary([row["sparsity"] for row in rows]).mean
        texts.append(f"{mean_text(values.mean, values.std)} at {share:.0%}")
    return " to ".join(texts)


def _numbers(rounds: Sequence[Record]) -> Table:
    metric = metric_of(rounds[0])
    columns = ("run", "round", "seed", "sparsity", "metric", "value", "steps")
    rows = tuple(
        (
            name,
            str(number),
            str(row["seed"]),
            f"{row['sparsity']:.6g}",
            metric,
            f"{row['metrics'][metric]:.6g}",
            str(row["steps"]),
        )
        for name, by_round in series(rounds).items()
        for number, members in sorted(by_round.items())
        for row in members
    )
    return Table("", columns, rows)


def _seeds_text(rounds: Sequence[Record]) -> str:
    return counted(len({row["seed"] for row in rounds}), "seed")


def run_figure(rounds: Sequence[Record]) -> Figure:
    """Return the plot of the rounds of one task and model: mean and standard deviation over seeds.

    Args:
        rounds: The "round" records.

    Raises:
        ValueError: matplotlib is not installed.
    """
    figure, axes = new_figure()
    metric, scale = metric_of(rounds[0]), _scale(rounds)
    if dense := [scale * row["metrics"][metric] for row in dense_rounds(rounds)]:
        mean = summary(dense)
        axes.axhline(mean.mean, color="0.3", linewidth=1, label="dense")
        if mean.std:
            axes.axhspan(mean.mean - mean.std, mean.mean + mean.std, color="0.3", alpha=0.12, linewidth=0)
    for number, (name, points) in enumerate(series(rounds).items()):
        summaries = [summary([row["metrics"][metric] for row in rows]) for rows in points.values()]
        axes.errorbar(
            [100 * summary([row["sparsity"] for row in rows]).mean for rows in points.values()],
            [scale * each.mean for each in summaries],
            [scale * (each.std or 0.0) for each in summaries],
            **line_style(number),
            capsize=3,
            label=figure_text(name),
        )
    axes.set_xlabel("sparsity of the prunable weights (%)")
    _finish(figure, axes, rounds)
    return figure


def cost_figure(rounds: Sequence[Record]) -> Figure:
    """Return the plot of the metric against a run's optimizer steps so far, with each sparsity beside it.

    Args:
        rounds: The "round" records of one task and model.

    Raises:
        ValueError: matplotlib is not installed.
    """
    figure, axes = new_figure()
    metric, scale = metric_of(rounds[0]), _scale(rounds)
    places: list[tuple[float, float]] = []
    labels: list[str] = []
    for number, (name, by_round) in enumerate(series(rounds).items()):
        points = costs(by_round)
        summaries = [summary([row["metrics"][metric] for row in point.rows]) for point in points]
        values = [scale * each.mean for each in summaries]
        steps = [point.steps for point in points]
        deviations = [scale * (each.std or 0.0) for each in summaries]
        axes.errorbar(steps, values, deviations, **line_style(number), capsize=3, label=figure_text(name))
        places += [(point.steps, value) for point, value in zip(points, values, strict=True)]
        labels += [f"{point.sparsity:.0%}" for point in points]
    axes.set_xlabel("optimizer steps so far; beside each point: its sparsity")
    axes.set_xlim(left=0)
    _finish(figure, axes, rounds)
    label_points(axes, places, labels)
    return figure


def _scale(rounds: Sequence[Record]) -> int:
    """Return 100 if the metric is a share, so that it is shown in per cent; else 1."""
    metric = metric_of(rounds[0])
    return 100 if all(0 <= row["metrics"][metric] <= 1 for row in rounds) else 1


def _finish(figure: Figure, axes: Axes, rounds: Sequence[Record]) -> None:
    """Write the texts that all plots of rounds share."""
    task, model = rounds[0]["task"], rounds[0]["model"]
    axes.set_ylabel(f"{task}, {metric_of(rounds[0])}{' (%)' if _scale(rounds) == 100 else ''}")
    axes.set_title(f"{model} on {task}: {_seeds_text(rounds)}", loc="left")
    axes.legend(frameon=False, loc="best")
    machines = dict.fromkeys(_machine(row) for row in rounds)
    figure.supxlabel("\n".join(machines), fontsize=7, color="0.35", x=0.01, ha="left")


def _machine(row: Record) -> str:
    environment = row.get("environment")
    return machine_text(environment) if environment else "machine not recorded"
