"""The verdict on a ticket: its metric over seeds, against the dense model's and against chance."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from sparsebert.tasks.examples import Examples, Question, label_counts
from sparsebert.tasks.registry import TASKS, Task, find_task, split_suffix

# Metrics are shares of at most a few million examples: smaller differences are rounding errors.
_ROUNDING = 1e-9
# A dense model has learnt a task if it gains more than this share of what is possible beyond chance.
_LEAST_GAIN = 0.1


@dataclass(frozen=True)
class Summary:
    """A metric over seeds.

    Attributes:
        values: One value per seed.
        mean: Their mean.
        std: Their standard deviation (n - 1); None for a single value.
    """

    values: tuple[float, ...]
    mean: float
    std: float | None


@dataclass(frozen=True)
class Verdict:
    """A ticket compared with the dense model (:func:`verdict`).

    Attributes:
        verdict: ``strict``, ``winning``, ``none`` or ``undecided``.
        dense: The metric of the dense model.
        ticket: The metric of the ticket.
        reason: Why the comparison is undecided; else None.
    """

    verdict: Literal["strict", "winning", "none", "undecided"]
    dense: Summary
    ticket: Summary
    reason: str | None = None


def summary(values: Sequence[float]) -> Summary:
    """Return mean and standard deviation of a metric over seeds. Raises ValueError if there are no values."""
    if not values:
        raise ValueError("values must hold the metric of at least one seed, got none")
    numbers = tuple(map(float, values))
    std = statistics.stdev(numbers) if len(numbers) > 1 else None
    return Summary(numbers, statistics.fmean(numbers), std)


def verdict(
    dense_values: Sequence[float], ticket_values: Sequence[float], chance: float | None = None
) -> Verdict:
    """Compare a ticket with the dense model, by the criterion of Chen et al. 2020.

    A ticket is ``strict`` if its mean is at least the dense mean, and ``winning`` if its mean is at least the
    dense mean minus the dense standard deviation, which needs two or more dense seeds. The comparison is
    ``undecided`` if the dense model has not learnt the task (:func:`undecided_reason`): otherwise a ticket
    that guesses would win against dense runs that scatter.

    Args:
        dense_values: Metric of the dense model, one value per seed; higher is better.
        ticket_values: Metric of the ticket, one value per seed.
        chance: Metric without any learning (:func:`chance_metrics`); None if it is unknown.

    Raises:
        ValueError: If one of the two has no values.
    """
    dense, ticket = summary(dense_values), summary(ticket_values)
    if reason := undecided_reason(dense.mean, dense.std, chance, dense.values):
        return Verdict("undecided", dense, ticket, reason)
    name: Literal["strict", "winning", "none"] = "none"
    if ticket.mean >= dense.mean - _ROUNDING:
        name = "strict"
    elif dense.std is not None and ticket.mean >= dense.mean - dense.std - _ROUNDING:
        name = "winning"
    return Verdict(name, dense, ticket)


def undecided_reason(
    mean: float, std: float | None, chance: float | None, values: Sequence[float] = ()
) -> str | None:
    """Return in words why tickets cannot be compared with a dense model, or None if they can.

    Its mean must exceed chance by more than two of its standard deviations, and by more than a tenth of the
    distance from chance to a perfect metric.

    Args:
        mean: Mean metric of the dense model.
        std: Its standard deviation over seeds; None for a single seed.
        chance: Metric without any learning; None if it is unknown.
        values: Its metric for each seed, if known.
    """
    if chance is None or mean - chance > max(2 * (std or 0.0), _LEAST_GAIN * (1 - chance)):
        return None
    deviation = "" if std is None else f" ± {std:.4f}"
    spread = f" ({min(values):.4f} to {max(values):.4f})" if len(values) > 1 else ""
    return f"dense {mean:.4f}{deviation}{spread} is too close to chance, {chance:.4f}"


def chance_metrics(task: str | Task, validation: Mapping[str, Examples]) -> dict[str, float]:
    """Return the metrics of all splits without any learning: the best of a constant answer, 0 for the rest.

    Perplexities and thresholds, which have no such value, are left out.

    Args:
        task: The task, or its name.
        validation: Validation examples by split.
    """
    task = find_task(task)
    chances: dict[str, float] = {}
    for split, examples in validation.items():
        constant = _constant_answer(task, examples)
        chances |= {
            name + split_suffix(split): constant.get(name, 0.0)
            for name in task.metrics
            if name != "perplexity" and not name.endswith("_thresh")
        }
    return chances


def _constant_answer(task: Task, examples: Examples) -> dict[str, float]:
    """Return the metrics of the best constant answer that are not 0."""
    unanswerable = [not example.answers for example in examples if isinstance(example, Question)]
    if any(unanswerable):
        # No answer to any question; the share of those that have none.
        silent = statistics.fmean(unanswerable)
        names = ("f1", "exact", "best_f1", "best_exact")
        return dict.fromkeys(names, silent) | {"NoAns_f1": 1.0, "NoAns_exact": 1.0}
    counts = label_counts(examples)
    shares = [counts[index] / max(1, sum(counts.values())) for index in range(len(task.labels))]
    largest = max(shares, default=0.0)
    if task.kind == "tokens":
        return {"accuracy": largest}
    return {
        "accuracy": largest,
        "f1": 2 * shares[1] / (1 + shares[1]) if len(shares) > 1 else 0.0,
        "macro_f1": 2 * largest / (1 + largest) / max(1, len(shares)),
    }


def chance_of(row: Mapping[str, Any], metric: str) -> float | None:
    """Return the chance level of a metric of a record.

    Records that were written before they had ``chance`` get the chance of equally frequent classes; None for
    the accuracy of a task of the user, whose classes these records do not hold.
    """
    chances = row.get("chance")
    if isinstance(chances, Mapping):
        return chances.get(metric)
    if isinstance(chances, float | int):
        return float(chances)
    task = TASKS.get(str(row.get("task")))
    if not metric.startswith(("accuracy", "macro_f1")):
        return 0.0
    if task is None:
        return None
    return 1 / len(task.labels) if task.labels else 0.0


def summarise(
    metric: str, rows: Sequence[Mapping[str, Any]], dense_rows: Sequence[Mapping[str, Any]] = ()
) -> dict[str, Any]:
    """Summarise a metric of records that differ only in their seeds.

    Args:
        metric: The metric's name.
        rows: Records with ``metrics`` and ``seed``.
        dense_rows: Records of the dense model to compare with.

    Returns:
        ``metric``, ``seeds``, ``values``, ``mean`` and ``std``; with ``dense_rows`` also ``verdict``,
        ``dense_mean``, ``dense_std``, ``dense_values``, ``chance``, and ``reason`` of a verdict that is
        undecided, else None (:func:`verdict`).
    """
    of_rows = summary([row["metrics"][metric] for row in rows])
    fields: dict[str, Any] = {"metric": metric, "seeds": [row["seed"] for row in rows]}
    fields |= {"values": list(of_rows.values), "mean": of_rows.mean, "std": of_rows.std}
    if dense_rows:
        chance = chance_of(dense_rows[0], metric)
        result = verdict([row["metrics"][metric] for row in dense_rows], of_rows.values, chance)
        fields |= {"verdict": result.verdict, "dense_mean": result.dense.mean, "dense_std": result.dense.std}
        fields |= {"dense_values": list(result.dense.values), "chance": chance, "reason": result.reason}
    return fields


def judged_again(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of :func:`summarise`, undecided where an earlier version decided near chance."""
    if "dense_mean" not in row or "reason" in row:
        return dict(row)
    reason = undecided_reason(row["dense_mean"], row["dense_std"], chance_of(row, row["metric"]))
    return {**row, "verdict": "undecided" if reason else row["verdict"], "reason": reason}
