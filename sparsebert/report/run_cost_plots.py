"""Plots of what each round of a run costs: its time by activity, and its peak memory."""

from __future__ import annotations

import functools
import statistics
import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sparsebert.report.format import Record, counted, machine_key, machine_text
from sparsebert.report.picture import Picture
from sparsebert.report.plain_text import figure_text
from sparsebert.report.plots import COLOURS, HATCHES, new_rows
from sparsebert.report.run_series import series
from sparsebert.report.table import Table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Fields of ``seconds`` -> words.
ACTIVITIES = {"prune": "deciding on the ticket", "train": "training", "evaluate": "evaluation"}
# Rounds of one picture; the rest is said to be left out.
MOST_ROUNDS = 60
# Characters of a line of a bar's name.
_LABEL = 46
UNKNOWN = "machine not recorded"


@dataclass(frozen=True)
class RoundCost:
    """The cost of one round; means over seeds.

    Attributes:
        name: Run, number of the round and sparsity.
        seconds: Activity -> seconds.
        peak_bytes: Peak resident bytes of the process; None if not every seed's record holds them.
        peak_gpu_bytes: Peak bytes allocated on the GPU; None without one.
        seeds: Number of seeds.
    """

    name: str
    seconds: dict[str, float]
    peak_bytes: float | None
    peak_gpu_bytes: float | None
    seeds: int

    @property
    def total(self) -> float:
        """Seconds of all activities."""
        return sum(self.seconds.values())

    @property
    def memory(self) -> float | None:
        """Peak bytes of the GPU if there is one, else of the process."""
        return self.peak_bytes if self.peak_gpu_bytes is None else self.peak_gpu_bytes


def round_costs(rounds: Iterable[Record]) -> list[RoundCost]:
    """Return the cost of each round of each run, in the order of the runs."""
    return [
        RoundCost(
            f"{name}, round {number} ({statistics.fmean(row['sparsity'] for row in rows):.0%})",
            {each: statistics.fmean(row["seconds"].get(each, 0.0) for row in rows) for each in ACTIVITIES},
            _mean(rows, "peak_rss_bytes"),
            _mean(rows, "peak_gpu_bytes"),
            len({row["seed"] for row in rows}),
        )
        for name, by_round in series(rounds).items()
        for number, rows in sorted(by_round.items())
    ]


def _mean(rows: Sequence[Record], field: str) -> float | None:
    values = [(row.get("memory") or {}).get(field) for row in rows]
    recorded = [value for value in values if value is not None]
    return statistics.fmean(recorded) if len(recorded) == len(values) else None


def cost_pictures(records: Iterable[Record]) -> list[Picture]:
    """Return a picture for the rounds of each task, model and machine."""
    groups: dict[tuple[str, ...], list[Record]] = {}
    for row in records:
        if row["kind"] == "round":
            key = machine_key(row) if row.get("environment") else (UNKNOWN,)
            groups.setdefault((row["task"], row["model"], *key), []).append(row)
    pictures = []
    for (task, model, *_), rows in groups.items():
        costs = round_costs(rows)
        drawn = costs[:MOST_ROUNDS]
        environment = rows[-1].get("environment")
        machine = machine_text(environment) if environment else UNKNOWN
        caption = f"{machine}. Means over {counted(max(cost.seeds for cost in drawn), 'seed')}. "
        if any(cost.memory is not None for cost in drawn):
            spans = " or ".join(dict.fromkeys(map(_peak_span, rows)))
            caption += f"Memory: MB {_memory_name(drawn)}, {spans}."
        missing = [cost.name for cost in drawn if cost.memory is None]
        if missing:
            caption += f" Records without memory: {', '.join(missing)}."
        if len(costs) > len(drawn):
            caption += f" The first {len(drawn)} of {len(costs)} rounds; the file of numbers holds all."
        title = f"Time and memory of each round: {model} on {task}"
        pictures.append(
            Picture(
                title,
                f"{title}. {_message(costs)}",
                functools.partial(cost_figure, title, machine, drawn),
                caption,
                _numbers(costs),
            )
        )
    return pictures


def _peak_span(row: Record) -> str:
    """Return the time of which a round's peak is; records without resources reset none."""
    reset = (row.get("resources") or {"process_peak": True})["process_peak"] is False
    return "of the round" if reset else "of the process so far"


def cost_figure(title: str, machine: str, costs: Sequence[RoundCost]) -> Figure:
    """Return stacked bars of the minutes of each round, beside bars of its peak memory.

    Raises:
        ValueError: matplotlib is not installed.
    """
    figure, ((left, right),) = new_rows(1, 2, (9, 1.4 + 0.27 * len(costs)), widths=(3, 2))
    places = range(len(costs))
    starts = [0.0] * len(costs)
    for number, (activity, words) in enumerate(ACTIVITIES.items()):
        minutes = [cost.seconds[activity] / 60 for cost in costs]
        left.barh(
            places, minutes, left=starts, height=0.7, color=COLOURS[number], hatch=HATCHES[number],
            edgecolor="white", linewidth=0.5, label=words,
        )  # fmt: skip
        starts = [start + each for start, each in zip(starts, minutes, strict=True)]
    for place, cost in zip(places, costs, strict=True):
        left.annotate(f" {cost.total / 60:.1f}", (starts[place], place), va="center", fontsize=7)
        if cost.memory is None:
            right.annotate(" not recorded", (0, place), va="center", fontsize=7, color="0.35")
        else:
            right.barh(place, cost.memory / 1e6, height=0.7, color="0.55")
            right.annotate(f" {cost.memory / 1e6:,.0f}", (cost.memory / 1e6, place), va="center", fontsize=7)
    left.set_yticks(places, [figure_text(textwrap.fill(cost.name, _LABEL)) for cost in costs], fontsize=7)
    left.invert_yaxis()
    right.sharey(left)
    right.tick_params(labelleft=False, labelsize=8)
    left.tick_params(axis="x", labelsize=8)
    left.set_xlim(0, 1.12 * max(starts, default=0) or 1)
    right.set_xlim(0, 1.25 * max((cost.memory or 0 for cost in costs), default=0) / 1e6 or 1)
    left.set_xlabel("minutes", fontsize=8)
    right.set_xlabel(f"MB {_memory_name(costs)}", fontsize=8)
    figure.suptitle(title, x=0.01, ha="left", fontsize=10)
    left.legend(
        loc="lower left", bbox_to_anchor=(0, 1), ncols=3, frameon=False, fontsize=8, borderaxespad=0.2
    )
    figure.supxlabel(machine, fontsize=7, color="0.35", x=0.01, ha="left")
    return figure


def _memory_name(costs: Sequence[RoundCost]) -> str:
    on_gpu = any(cost.peak_gpu_bytes is not None for cost in costs)
    return "at the peak on the GPU" if on_gpu else "resident at the peak"


def _message(costs: Sequence[RoundCost]) -> str:
    """Return the totals and extremes in words."""
    longest = max(costs, key=lambda cost: cost.total)
    total = sum(cost.total for cost in costs)
    training = sum(cost.seconds["train"] for cost in costs)
    share = f" ({training / total:.0%} of them training)" if total else ""
    text = (
        f"{counted(len(costs), 'round')} take {total / 60:.1f} minutes{share}; the longest is {longest.name} "
        f"with {longest.total / 60:.1f} minutes."
    )
    if held := [cost for cost in costs if cost.memory is not None]:
        most = max(held, key=lambda cost: cost.memory or 0)
        text += f" The highest peak of memory is {(most.memory or 0) / 1e6:,.0f} MB, in {most.name}."
    return text


def _numbers(costs: Sequence[RoundCost]) -> Table:
    columns = (
        "round",
        "seeds",
        *(f"{each}_seconds" for each in ACTIVITIES),
        "peak_rss_bytes",
        "peak_gpu_bytes",
    )
    rows = tuple(
        (
            cost.name,
            str(cost.seeds),
            *(f"{cost.seconds[each]:.6g}" for each in ACTIVITIES),
            *("" if each is None else f"{each:.0f}" for each in (cost.peak_bytes, cost.peak_gpu_bytes)),
        )
        for cost in costs
    )
    return Table("", columns, rows)
