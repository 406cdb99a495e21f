"""Tables of trained tickets: accuracy and measured speed, and tickets transferred between tasks."""

from __future__ import annotations

import statistics
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

from sparsebert.report.format import (
    BUSY_NOTE,
    MISSING,
    Record,
    baseline_name,
    machine_text,
    megabytes,
    ratio_text,
    span_text,
    threads_text,
    versions_text,
)
from sparsebert.report.table import Table
from sparsebert.tasks import metrics, verdict

NAMES = {
    "dense": "dense",
    "imp": "IMP",
    "one-shot": "one-shot magnitude",
    "snip": "SNIP",
    "gradual": "gradual magnitude",
    "movement": "movement",
    "soft-movement": "soft movement",
    "smp-l": "SMP-L",
    "smp-s": "SMP-S",
    "random": "random",
    "importance": "heads and neurons, importance",
    "early-bird": "heads and neurons, Early-Bird",
    "random-units": "heads and neurons, random",
    "own-ticket": "the task's own (IMP)",
    "mlm-ticket": "of masked language modelling (IMP)",
}
BASELINES = ("onednn", "eager")


@dataclass(frozen=True)
class Point:
    """A method's tickets of one sparsity over several seeds.

    Attributes:
        label: Name of the method, a key of ``NAMES``.
        task: Name of the task.
        sparsities: Sparsity of each seed's ticket.
        values: The task's primary metric for each seed.
        speed: Bench record of one seed's ticket, if measured.
        chance: The metric without any learning, if known.
    """

    label: str
    task: str
    sparsities: tuple[float, ...]
    values: tuple[float, ...]
    speed: Record | None = None
    chance: float | None = None

    @property
    def sparsity(self) -> float:
        """Mean sparsity."""
        return statistics.fmean(self.sparsities)

    @property
    def summary(self) -> verdict.Summary:
        """Mean and standard deviation of the metric."""
        return verdict.summary(self.values)


def points(records: Iterable[Record], *parts: str) -> list[Point]:
    """Return the points of some parts, by method in the order of ``NAMES`` and by sparsity."""
    records = [row for row in records if row.get("part") in parts]
    speeds = {
        (row["label"], _share(row, row["ticket"]["sparsity"])): row
        for row in records
        if row["kind"] == "bench" and row["provider"] == "sparse"
    }
    # The latest of repeated rounds of a seed counts.
    values: dict[tuple[str, str, float], dict[int, Record]] = {}
    for row in records:
        if row["kind"] == "round" and row["label"] in NAMES and (row["sparsity"] or row["label"] == "dense"):
            key = (row["label"], row["task"], _share(row, row["sparsity"]))
            values.setdefault(key, {})[row["seed"]] = row
    order = list(NAMES)
    return [
        Point(
            label,
            task,
            tuple(row["sparsity"] for row in seeds.values()),
            tuple(row["metrics"][metrics.primary(task)] for row in seeds.values()),
            speeds.get((label, share)),
            verdict.chance_of(next(iter(seeds.values())), metrics.primary(task)),
        )
        for (label, task, share), seeds in sorted(
            values.items(), key=lambda item: (order.index(item[0][0]), item[0][2])
        )
    ]


def curve_tables(records: Iterable[Record]) -> list[Table]:
    """Return the table of each ticket's accuracy, verdict against the dense model, and measured speed."""
    records = list(records)
    return _accuracy_tables("Tickets", records, points(records, "curve"))


def learned_tables(records: Iterable[Record]) -> list[Table]:
    """Return the table of learned masks and of heads and neurons, with dense and random for comparison."""
    records = list(records)
    if not points(records, "learned"):
        return []
    excluded = ("imp", "one-shot", "snip")
    tickets = [point for point in points(records, "curve", "learned") if point.label not in excluded]
    return _accuracy_tables("Learned and structured tickets", records, tickets)


def _accuracy_tables(what: str, records: Sequence[Record], tickets: Sequence[Point]) -> list[Table]:
    if not tickets:
        return []
    dense = next((point for point in tickets if point.label == "dense"), None)
    rows = tuple(
        (
            f"{NAMES[point.label]} {point.sparsity:.0%}" if point.sparsity else NAMES[point.label],
            share_text(point.summary),
            _verdict(point, dense),
            *_speed_cells(point.speed),
        )
        for point in tickets
    )
    measured = [point.speed for point in tickets if point.speed]
    notes = [_training_note(records, "curve", "learned"), *_seeds_note(tickets)]
    if measured:
        environment, workload = measured[0]["environment"], measured[0]["workload"]
        notes.append(
            "Speed of the first seed's ticket in fp32, whole model, median of paired rounds: "
            f"{machine_text(environment)}, {threads_text(workload['threads'])}; {workload['sequences']} "
            f"sentences of the validation data in batches of {workload['batch']}, "
            f"{min(workload['lengths'])} to {max(workload['lengths'])} tokens."
        )
        if any(row["busy"] for row in measured):
            notes.append(BUSY_NOTE)
    notes += _undecided_note(dense)
    notes += _sparsity_note(tickets)
    notes += _search_note(records, {point.label for point in tickets})
    columns = ("ticket", metrics.primary(tickets[0].task), "verdict", *_speed_columns(measured), "weights MB")
    title = f"{what} of {_model(records)} on {tickets[0].task}"
    return [Table(title, columns, rows, tuple(notes))]


def transfer_tables(records: Iterable[Record]) -> list[Table]:
    """Return the table of every task trained from every ticket of one sparsity."""
    records = list(records)
    tickets = points(records, "transfer")
    if not tickets:
        return []
    tasks = list(dict.fromkeys(point.task for point in tickets))
    cells = {(point.label, point.task): share_text(point.summary) for point in tickets}
    rows = tuple(
        (NAMES[label], *(cells.get((label, task), MISSING) for task in tasks))
        for label in dict.fromkeys(point.label for point in tickets)
    )
    share = max(point.sparsity for point in tickets)
    columns = ("ticket", *(f"{task} ({metrics.primary(task)})" for task in tasks))
    title = f"Tickets of {_model(records)} at {share:.0%}, trained on other tasks"
    notes = [_training_note(records, "transfer"), *_seeds_note(tickets)]
    return [Table(title, columns, rows, tuple(notes))]


def share_text(summary: verdict.Summary) -> str:
    """Return the mean and, for several seeds, the standard deviation in per cent."""
    spread = "" if summary.std is None else f" ± {100 * summary.std:.1f}"
    return f"{100 * summary.mean:.1f}{spread}"


def _verdict(point: Point, dense: Point | None) -> str:
    if dense is None or point is dense:
        return MISSING
    return verdict.verdict(dense.values, point.values, dense.chance).verdict


def _undecided_note(dense: Point | None) -> list[str]:
    """Return a note if the dense model is too close to chance for verdicts."""
    reason = dense and verdict.verdict(dense.values, dense.values, dense.chance).reason
    return [f"Undecided: {reason}."] if reason else []


def _share(row: Record, sparsity: float) -> float:
    """Return the sparsity of a point: the intended one for methods that determine the sparsity."""
    return round(row.get("asked", sparsity), 3)


def _speed_columns(measured: Sequence[Record]) -> tuple[str, ...]:
    if not measured:
        return tuple(f"vs {name}" for name in BASELINES)
    return tuple(f"vs {baseline_name(name, measured[0]['environment'])}" for name in BASELINES)


def _speed_cells(speed: Record | None) -> tuple[str, ...]:
    if speed is None:
        return (MISSING,) * (len(BASELINES) + 1)
    doubt = "?" if speed["busy"] else ""
    ratios = (ratio_text(speed["ratio"].get(name), doubt) for name in BASELINES)
    return (*ratios, megabytes(speed["weight_bytes"]))


def _model(records: Sequence[Record]) -> str:
    return str(next(row["model"] for row in records if row["kind"] == "round"))


def _training_note(records: Sequence[Record], *parts: str) -> str:
    rounds = [row for row in records if row["kind"] == "round" and row["part"] in parts]
    seeds = sorted({row["seed"] for row in rounds})
    return (
        f"In per cent: mean ± standard deviation (n - 1) over the seeds {', '.join(map(str, seeds))}; "
        f"{_steps_text(rounds)} steps a round. {versions_text(rounds[-1]['versions'])}."
    )


def _seeds_note(tickets: Iterable[Point]) -> list[str]:
    counts = {len(point.values) for point in tickets}
    if len(counts) == 1:
        return []
    return [
        f"Not every seed is trained yet: means are over {min(counts)} to {max(counts)} seeds; a mean of one "
        "has no deviation."
    ]


def _sparsity_note(tickets: Iterable[Point]) -> list[str]:
    """Return notes on the range of sparsities that a method determines itself."""
    apart: dict[str, list[str]] = {}
    for point in tickets:
        if (sparsity_range := span_text(point.sparsities, ".0%")) != f"{point.sparsity:.0%}":
            apart.setdefault(NAMES[point.label], []).append(sparsity_range)
    return [
        f"Sparsities of {label} are means; seeds range from {', '.join(spans)}."
        for label, spans in apart.items()
    ]


def _search_note(records: Iterable[Record], labels: Collection[str]) -> list[str]:
    """Return a note on the steps after which Early-Bird drew its tickets."""
    searches = [
        row["search"]
        for row in records
        if row["kind"] == "round" and row["label"] in labels and "drawn_at" in (row.get("search") or {})
    ]
    if not searches:
        return []
    drawn, saved = ([search[name] for search in searches] for name in ("drawn_at", "saved"))
    return [
        f"Early-Bird drew its tickets after {span_text(drawn, 'd')} of {searches[0]['steps']} steps, "
        f"{span_text(saved, '.0%')} of a search saved."
    ]


def _steps_text(rounds: Iterable[Record]) -> str:
    """Return the number of steps, or one number for each task."""
    steps = {row["task"]: row["steps"] for row in rounds}
    if len(set(steps.values())) == 1:
        return str(next(iter(steps.values())))
    return ", ".join(f"{count} ({task})" for task, count in steps.items())
