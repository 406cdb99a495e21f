"""Plots of Early-Bird's mask distance over a search, with the moment at which the ticket was drawn."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from sparsebert.report.format import Record, counted, versions_text
from sparsebert.report.picture import Picture
from sparsebert.report.plain_text import figure_text
from sparsebert.report.plots import line_style, new_figure
from sparsebert.report.table import Table

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Search:
    """The search of one run.

    Attributes:
        name: Method, sparsity and seed.
        points: Step and distance of its mask from the previous one.
        drawn_at: Step of the draw.
        steps: Steps of a whole round.
        settled: Whether the mask had settled by then.
        epsilon: Upper bound of a small distance; None in records of older versions.
        window: Number of consecutive small distances to wait for; None in records of older versions.
        steps_per_epoch: None in records of older versions.
    """

    name: str
    points: tuple[tuple[int, float], ...]
    drawn_at: int
    steps: int
    settled: bool
    epsilon: float | None
    window: int | None
    steps_per_epoch: int | None

    @property
    def last(self) -> float:
        """The distance at the draw."""
        return self.points[-1][1]


def searches(rounds: Iterable[Record]) -> list[Search]:
    """Return the searches that recorded distances, in the order of the records; repeated ones count once."""
    shown: dict[str, Search] = {}
    for row in rounds:
        search = row.get("search")
        if row["kind"] != "round" or not isinstance(search, dict) or not search.get("distances"):
            continue
        name = f"{row['method']} {row['sparsity']:.0%}, seed {row['seed']}"
        run = f" ({row['run']})" if row.get("run") and "part" not in row else ""
        shown[name + run] = Search(
            name + run,
            tuple((step, distance) for step, distance in search["distances"]),
            search["drawn_at"],
            search["steps"],
            search["settled"],
            search.get("epsilon"),
            search.get("window"),
            search.get("steps_per_epoch"),
        )
    return list(shown.values())


def early_bird_pictures(records: Iterable[Record]) -> list[Picture]:
    """Return a picture of the searches of each task and model."""
    groups: dict[tuple[str, str], list[Record]] = {}
    for row in records:
        if row["kind"] == "round":
            groups.setdefault((row["task"], row["model"]), []).append(row)
    pictures = []
    for (task, model), rows in groups.items():
        if shown := searches(rows):
            title = f"Mask distance of Early-Bird: {model} on {task}"
            alt = f"{title}, {counted(len(shown), 'run')}. {' '.join(map(_sentence, shown))}"
            caption = (
                "A distance is the share of heads and neurons in which a mask differs from the previous one; "
                f"a star is the draw. {_bounds(shown)} {versions_text(rows[-1]['versions'])}."
            )
            draw = functools.partial(early_bird_figure, title, shown)
            pictures.append(Picture(title, alt, draw, caption, _numbers(shown)))
    return pictures


def early_bird_figure(title: str, shown: Sequence[Search]) -> Figure:
    """Return the plot of mask distances against steps, with each bound and each draw.

    Raises:
        ValueError: matplotlib is not installed.
    """
    figure, axes = new_figure()
    for number, search in enumerate(shown):
        style = line_style(number) | {"markersize": 4, "linewidth": 1}
        steps, distances = zip(*search.points, strict=True)
        label = search.name + ("" if search.settled else ": not settled")
        axes.plot(steps, [100 * each for each in distances], **style, label=figure_text(label))
        axes.plot([search.drawn_at], [100 * search.last], "*", color=style["color"], markersize=10)
    for epsilon in dict.fromkeys(search.epsilon for search in shown):
        if epsilon is not None:
            axes.axhline(100 * epsilon, color="0.3", linewidth=1, linestyle="--")
            axes.annotate(
                f"epsilon {epsilon:g}", (1, 100 * epsilon), (-2, 3), xycoords=axes.get_yaxis_transform(),
                textcoords="offset points", ha="right", fontsize=8, color="0.3",
            )  # fmt: skip
    axes.set_xlim(0, max(search.steps for search in shown))
    axes.set_ylim(bottom=0)
    axes.set_xlabel("optimizer steps; the axis ends with a whole round")
    axes.set_ylabel("mask distance (% of heads and neurons)")
    epochs = {search.steps_per_epoch for search in shown}
    per_epoch = epochs.pop() if len(epochs) == 1 else None
    if per_epoch is not None:
        top = axes.secondary_xaxis(
            "top",
            functions=(
                lambda steps: np.asarray(steps) / per_epoch,
                lambda each: np.asarray(each) * per_epoch,
            ),
        )
        top.set_xlabel("epochs", fontsize=8)
        top.tick_params(labelsize=8)
    axes.set_title(title, loc="left")
    axes.legend(frameon=False, fontsize=8)
    return figure


def _sentence(search: Search) -> str:
    step, first = search.points[0]
    settled = "" if search.settled else ", before its mask had settled"
    return (
        f"{search.name}: {first:.1%} at step {step}, {search.last:.1%} at step {search.drawn_at} of "
        f"{search.steps}, where its ticket was drawn{settled}."
    )


def _bounds(shown: Sequence[Search]) -> str:
    """Return what the draw waited for, in a sentence."""
    bounds = dict.fromkeys((search.epsilon, search.window) for search in shown)
    waited_for = [
        f"{window} consecutive distances below {epsilon:g}"
        for epsilon, window in bounds
        if epsilon is not None
    ]
    sentence = f"It waits for {' or '.join(waited_for)} (dashed)." if waited_for else ""
    unknown = [search.name for search in shown if search.epsilon is None]
    if unknown:
        which = "" if len(unknown) == len(shown) else f" of {', '.join(unknown)}"
        sentence += f" The records{which} are of a version that did not log epsilon: it is not drawn."
    return sentence.strip()


def _numbers(shown: Sequence[Search]) -> Table:
    columns = ("search", "step", "distance", "epsilon", "window", "drawn_at", "steps", "settled")
    rows = tuple(
        (
            search.name,
            str(step),
            f"{distance:.6g}",
            "" if search.epsilon is None else f"{search.epsilon:g}",
            "" if search.window is None else str(search.window),
            str(search.drawn_at),
            str(search.steps),
            str(search.settled).lower(),
        )
        for search in shown
        for step, distance in search.points
    )
    return Table("", columns, rows)
