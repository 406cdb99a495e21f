"""Metrics of the tasks, from scikit-learn and scipy where available, and the verdict on a ticket."""

from __future__ import annotations

import re
import statistics
import string
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from sparsebert.tasks.examples import Example, Examples
from sparsebert.tasks.registry import TASKS, Task, find_task, split_suffix

# Metrics are shares of at most a few million examples: smaller differences are rounding errors.
_ROUNDING = 1e-9
# A dense model has learnt a task if it gains more than this share of what is possible beyond chance.
_LEAST_GAIN = 0.1
# Predicted class for a row with non-finite logits; it is the label of no example.
_NO_CLASS = -1
# Label of tokens that are not scored (torch's ignore_index).
IGNORED = -100


def compute(
    task: str | Task, predictions: Any, references: Any, *, split: str | None = None
) -> dict[str, float]:
    """Compute the metrics of a task on one validation split.

    The Matthews correlation is 0 if only one class is predicted; F1 is the F1 of class 1. An undefined
    correlation (constant or non-finite predictions) counts as 0, and non-finite logits (from a run that
    diverged) count as wrong answers; both cause a warning. Spans are scored like SQuAD v1.1.

    Args:
        task: The task, or its name.
        predictions: Classification: classes [n] (integers) or logits [n, classes]. Regression: [n] or [n, 1].
            Spans: texts. Masked language modelling: token ids of any shape, or logits with the vocabulary as
            the last dimension.
        references: Classification and regression: [n]. Spans: lists of accepted texts. Masked language
            modelling: token ids; -100 is not scored.
        split: The validation split; required if the task has several.

    Returns:
        Metrics by name, as shares: 0.91, not 91. If the task has several splits, the names hold the split:
        ``accuracy_matched`` and ``accuracy_mismatched`` for MNLI.

    Raises:
        ValueError: For an unknown task or split, and for sizes that are 0 or differ.
    """
    task = find_task(task)
    if split is None:
        if len(task.splits) > 1:
            raise ValueError(f"split is missing: pass one of {' and '.join(task.splits)} for {task.name}")
        split = task.splits[0]
    elif split not in task.splits:
        raise ValueError(f"{task.name} has no split {split!r}; its splits: {', '.join(task.splits)}")
    if len(predictions) != len(references) or not len(references):
        raise ValueError(
            "there must be as many predictions as references, and at least one, got "
            f"{len(predictions)} predictions for {len(references)} references"
        )
    score = {"classification": _classification, "regression": _regression, "span": _span, "mlm": _mlm}[
        task.kind
    ]
    scores = score(task, predictions, references)
    return {name + split_suffix(split): scores[name] for name in task.metrics}


def primary(task: str | Task) -> str:
    """Return the name of a task's primary metric in the results of :func:`compute`."""
    return find_task(task).metric


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
    if reason := undecided_reason(dense.mean, dense.std, chance):
        spread = f", from {min(dense.values):.4f} to {max(dense.values):.4f}" if dense.std is not None else ""
        return Verdict("undecided", dense, ticket, reason + spread)
    name: Literal["strict", "winning", "none"] = "none"
    if ticket.mean >= dense.mean - _ROUNDING:
        name = "strict"
    elif dense.std is not None and ticket.mean >= dense.mean - dense.std - _ROUNDING:
        name = "winning"
    return Verdict(name, dense, ticket)


def undecided_reason(mean: float, std: float | None, chance: float | None) -> str | None:
    """Return in words why tickets cannot be compared with a dense model, or None if they can.

    Its mean must exceed chance by more than two of its standard deviations, and by more than a tenth of the
    distance from chance to a perfect metric.

    Args:
        mean: Mean metric of the dense model.
        std: Its standard deviation over seeds; None for a single seed.
        chance: Metric without any learning; None if it is unknown.
    """
    if chance is None or mean - chance > max(2 * (std or 0.0), _LEAST_GAIN * (1 - chance)):
        return None
    deviation = "" if std is None else f" ± {std:.4f}"
    return f"dense {mean:.4f}{deviation} is too close to chance, {chance:.4f}"


def chance_metrics(task: str | Task, validation: Mapping[str, Examples]) -> dict[str, float]:
    """Return the metrics of all splits without any learning: the best of a constant answer, 0 for the rest.

    Args:
        task: The task, or its name.
        validation: Validation examples by split.
    """
    task = find_task(task)
    chances: dict[str, float] = {}
    for split, examples in validation.items():
        counts = Counter(example.label for example in examples if isinstance(example, Example))
        shares = [counts[index] / max(1, sum(counts.values())) for index in range(len(task.labels))]
        largest = max(shares, default=0.0)
        constant = {
            "accuracy": largest,
            "f1": 2 * shares[1] / (1 + shares[1]) if len(shares) > 1 else 0.0,
            "macro_f1": 2 * largest / (1 + largest) / max(1, len(shares)),
        }
        chances |= {name + split_suffix(split): constant.get(name, 0.0) for name in task.metrics}
    return chances


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


def _classification(task: Task, predictions: Any, references: Any) -> dict[str, float]:
    from sklearn import metrics

    truth = np.asarray(references)
    guess = _classes(np.asarray(predictions))
    if truth.shape != guess.shape:
        raise ValueError(f"predictions have shape {guess.shape}, references {truth.shape}; they must agree")
    every_class = range(len(task.labels))
    scores = {
        "accuracy": lambda: metrics.accuracy_score(truth, guess),
        "mcc": lambda: metrics.matthews_corrcoef(truth, guess),
        "f1": lambda: metrics.f1_score(truth, guess, labels=[1], average=None, zero_division=0)[0],
        "macro_f1": lambda: metrics.f1_score(
            truth, guess, labels=every_class, average="macro", zero_division=0
        ),
    }
    return {name: float(scores[name]()) for name in task.metrics}


def _classes(predictions: np.ndarray) -> np.ndarray:
    """Return classes [n] from classes or from logits [n, classes]; non-finite rows get ``_NO_CLASS``."""
    if not np.issubdtype(predictions.dtype, np.floating):
        return predictions
    if predictions.ndim != 2:
        raise ValueError(f"logits must have the shape [n, classes], got {list(predictions.shape)}")
    finite = np.isfinite(predictions).all(axis=-1)
    if not finite.all():
        _warn(f"{(~finite).sum()} of {len(finite)} predictions are not finite: they count as wrong")
    return np.where(finite, predictions.argmax(axis=-1), _NO_CLASS)


def _regression(task: Task, predictions: Any, references: Any) -> dict[str, float]:
    from scipy import stats

    truth = np.asarray(references, dtype=np.float64)
    guess = np.asarray(predictions, dtype=np.float64)
    # Only the last dimension: a batch of one must keep its first.
    guess = guess.squeeze(-1) if guess.ndim == 2 and guess.shape[-1] == 1 else guess
    if truth.shape != guess.shape or truth.ndim != 1:
        raise ValueError(f"predictions have shape {guess.shape}, references {truth.shape}; they must agree")
    reason = ""
    if not np.isfinite(guess).all():
        reason = "not all predictions are finite"
    elif np.ptp(guess) == 0 or np.ptp(truth) == 0:
        reason = "predictions are constant" if np.ptp(guess) == 0 else "references are constant"
    if reason:
        _warn(f"{reason}: the correlation is undefined and counts as 0")
        return dict.fromkeys(task.metrics, 0.0)
    scores = {"pearson": stats.pearsonr, "spearman": stats.spearmanr}
    return {name: float(scores[name](truth, guess).statistic) for name in task.metrics}


def _mlm(task: Task, predictions: Any, references: Any) -> dict[str, float]:
    truth, guess = np.asarray(references), np.asarray(predictions)
    guess = guess.argmax(axis=-1) if guess.ndim == truth.ndim + 1 else guess
    if truth.shape != guess.shape:
        raise ValueError(f"predictions have shape {guess.shape}, references {truth.shape}; they must agree")
    scored = truth != IGNORED
    if not scored.any():
        raise ValueError("references hold no masked token to score")
    return {"accuracy": float((guess[scored] == truth[scored]).mean())}


def _span(task: Task, predictions: Any, references: Any) -> dict[str, float]:
    exact, overlap = [], []
    for prediction, accepted in zip(predictions, references, strict=True):
        if isinstance(accepted, str) or not len(accepted):
            raise ValueError(f"references of spans must be lists of accepted texts, got {accepted!r}")
        exact.append(max(_normalised(prediction) == _normalised(answer) for answer in accepted))
        overlap.append(max(_token_f1(prediction, answer) for answer in accepted))
    return {"exact_match": statistics.fmean(exact), "f1": statistics.fmean(overlap)}


def _normalised(text: str) -> str:
    """Return lower-case text without punctuation, articles and extra blanks, as evaluate-v1.1.py does."""
    bare = "".join(character for character in text.lower() if character not in string.punctuation)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", bare).split())


def _token_f1(prediction: str, answer: str) -> float:
    guess, truth = _normalised(prediction).split(), _normalised(answer).split()
    common = sum((Counter(guess) & Counter(truth)).values())
    return 2 * common / (len(guess) + len(truth)) if common else 0.0


def _warn(message: str) -> None:
    warnings.warn(message, UserWarning, stacklevel=4)
