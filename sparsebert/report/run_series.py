"""Runs as series of rounds, and what they have spent by the end of each round."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from sparsebert.report.format import Record, start_text
from sparsebert.tasks.metrics import primary
from sparsebert.tasks.registry import TASKS

Series = Mapping[str, Mapping[int, list[Record]]]


@dataclass(frozen=True)
class Spent:
    """What a run has spent by the end of a round; means over seeds.

    Attributes:
        rows: Records of the round, one for each seed.
        rounds: Rounds trained.
        steps: Optimizer steps.
        seconds: Seconds to decide on tickets, train and evaluate.
    """

    rows: list[Record]
    rounds: int
    steps: float
    seconds: float

    @property
    def sparsity(self) -> float:
        """Mean sparsity of the round's tickets."""
        return statistics.fmean(row["sparsity"] for row in self.rows)


def series(rounds: Iterable[Record]) -> dict[str, dict[int, list[Record]]]:
    """Return the records of each run by round, by the run's name; seeds of a run count as one.

    The name is the method, with the start ticket if there is one: "imp from ALPS 60%". Several runs of one
    name have the name of their folder too.
    """
    runs: dict[tuple[str, str], dict[int, list[Record]]] = {}
    for row in rounds:
        name = f"{row['method']} {start_text(row)}".strip()
        by_round = runs.setdefault((name, row.get("run") or ""), {})
        by_round.setdefault(row["round"], []).append(row)
    names = [name for name, _ in runs]
    return {
        f"{name}, {run}" if run and names.count(name) > 1 else name: by_round
        for (name, run), by_round in runs.items()
    }


def costs(by_round: Mapping[int, list[Record]]) -> list[Spent]:
    """Return what a run has spent by the end of each of its rounds."""
    spent: list[Spent] = []
    for number in sorted(by_round):
        rows = by_round[number]
        steps = statistics.fmean(row["steps"] - _first_step(row, spent) for row in rows)
        seconds = statistics.fmean(sum(row["seconds"].values()) for row in rows)
        before = spent[-1] if spent else Spent([], 0, 0, 0)
        spent.append(Spent(rows, before.rounds + 1, before.steps + steps, before.seconds + seconds))
    return spent


def dense_rounds(rounds: Iterable[Record]) -> list[Record]:
    """Return the rounds of dense runs; if there are none, the longest rounds without sparsity.

    Early-Bird's search has no sparsity either, but ends with the draw.
    """
    whole = [row for row in rounds if not row["sparsity"]]
    longest = max((row["steps"] for row in whole), default=0)
    runs = [row for row in whole if row["method"] == "dense"]
    return runs or [row for row in whole if row["steps"] == longest]


def metric_of(row: Record) -> str:
    """Return the primary metric of a round's task; of the user's tasks, the first metric."""
    return primary(row["task"]) if row["task"] in TASKS else next(iter(row["metrics"]))


def _first_step(row: Record, before: list[Spent]) -> float:
    """Return the step from which a round trained; older records hold it only if training went on."""
    if "first_step" in row:
        return float(row["first_step"])
    return before[-1].steps if before and row["rewind"] == "none" else 0.0
