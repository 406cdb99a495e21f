"""Metrics of the tasks, and the verdict on a ticket: by scikit-learn and scipy where they have them."""

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

from sparsebert.tasks.registry import Task, find_task, split_suffix

# Metrics are shares of at most a few million examples: what differs by less differs by rounding.
_ROUNDING = 1e-9
# Stands for the class of a row of logits that are not finite: no example has it.
_NO_CLASS = -1
# Where the label of a masked language model's example is no token to be scored (torch's ignore_index).
_IGNORED = -100


def compute(
    task: str | Task, predictions: Any, references: Any, *, split: str | None = None
) -> dict[str, float]:
    """The metrics of a task on one validation split, all as shares: 0.91, not 91.

    Classification: ``predictions`` are classes [n] (integers) or logits [n, classes]; ``references``
    classes [n]. CoLA's Matthews correlation is 0 where one class is predicted; F1 is that of class 1.
    Regression: both [n], predictions also [n, 1]. A correlation that is not defined (constant or
    non-finite predictions) counts as 0, with a warning.
    Span: ``predictions`` are texts, ``references`` lists of accepted texts (SQuAD v1.1's evaluation).
    Masked language model: token ids of any shape, or logits with the vocabulary last; -100 is not scored.
    ``split``: which validation split it is, where a task has several; its name is part of the keys:
    ``accuracy_matched`` and ``accuracy_mismatched`` for MNLI. Logits that are not finite (a run that
    diverged) count as wrong answers, with a warning.
    Raises ValueError for an unknown task or split, and for sizes that do not fit or are 0.
    """
    task = find_task(task)
    if split is None:
        if len(task.splits) > 1:
            raise ValueError(f"{task.name} is scored on {' and '.join(task.splits)}: say on which")
        split = task.splits[0]
    elif split not in task.splits:
        raise ValueError(f"{task.name} has no split {split!r}: it has {', '.join(task.splits)}")
    if len(predictions) != len(references) or not len(references):
        raise ValueError(f"{len(predictions)} predictions for {len(references)} references")
    score = {"classification": _classification, "regression": _regression, "span": _span, "mlm": _mlm}[
        task.kind
    ]
    found = score(task, predictions, references)
    return {name + split_suffix(split): found[name] for name in task.metrics}


def primary(task: str | Task) -> str:
    """The key of a task's primary metric in what :func:`compute` returns."""
    return find_task(task).metric


@dataclass(frozen=True)
class Summary:
    """A metric over seeds: ``std`` with n - 1, None for a single value."""

    values: tuple[float, ...]
    mean: float
    std: float | None


@dataclass(frozen=True)
class Verdict:
    """A ticket against the dense model: ``strict``, ``winning`` or ``none``."""

    verdict: Literal["strict", "winning", "none"]
    dense: Summary
    ticket: Summary


def summary(values: Sequence[float]) -> Summary:
    """Mean and standard deviation (n - 1) of a metric over seeds. ValueError without any value."""
    if not values:
        raise ValueError("no values to summarise: at least one seed is needed")
    given = tuple(map(float, values))
    return Summary(given, statistics.fmean(given), statistics.stdev(given) if len(given) > 1 else None)


def verdict(dense_values: Sequence[float], ticket_values: Sequence[float]) -> Verdict:
    """Judge a ticket as Chen et al. 2020 do, by one value a seed of a metric that is better when higher.

    ``strict``: its mean is at least the dense mean. ``winning``: at least the dense mean minus the dense
    standard deviation, which takes two dense seeds or more. Raises ValueError where one side has no value.
    """
    dense, ticket = summary(dense_values), summary(ticket_values)
    name: Literal["strict", "winning", "none"] = "none"
    if ticket.mean >= dense.mean - _ROUNDING:
        name = "strict"
    elif dense.std is not None and ticket.mean >= dense.mean - dense.std - _ROUNDING:
        name = "winning"
    return Verdict(name, dense, ticket)


def summarise(
    metric: str, rows: Sequence[Mapping[str, Any]], judges: Sequence[Mapping[str, Any]] = ()
) -> dict[str, Any]:
    """A metric of records that differ in their seeds: ``values``, ``mean``, ``std`` (n - 1; None for one).

    With ``judges``, records of the dense model, also what :func:`verdict` says.
    """
    found = summary([row["metrics"][metric] for row in rows])
    fields: dict[str, Any] = {"metric": metric, "seeds": [row["seed"] for row in rows]}
    fields |= {"values": list(found.values), "mean": found.mean, "std": found.std}
    if judges:
        judged = verdict([row["metrics"][metric] for row in judges], found.values)
        fields |= {"verdict": judged.verdict, "dense_mean": judged.dense.mean, "dense_std": judged.dense.std}
    return fields


def _classification(task: Task, predictions: Any, references: Any) -> dict[str, float]:
    from sklearn import metrics

    truth = np.asarray(references)
    guess = _classes(np.asarray(predictions))
    if truth.shape != guess.shape:
        raise ValueError(f"predictions of shape {guess.shape} for references of shape {truth.shape}")
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
    """[n] of classes from classes or from logits [n, classes]; non-finite rows get a class of their own."""
    if not np.issubdtype(predictions.dtype, np.floating):
        return predictions
    if predictions.ndim != 2:
        raise ValueError(f"logits must be [n, classes], not of shape {predictions.shape}")
    finite = np.isfinite(predictions).all(axis=-1)
    if not finite.all():
        _warn(f"{(~finite).sum()} of {len(finite)} predictions are not finite: they count as wrong")
    return np.where(finite, predictions.argmax(axis=-1), _NO_CLASS)


def _regression(task: Task, predictions: Any, references: Any) -> dict[str, float]:
    from scipy import stats

    truth = np.asarray(references, dtype=np.float64)
    guess = np.asarray(predictions, dtype=np.float64)
    # Only the last dimension: a batch of one keeps its own.
    guess = guess.squeeze(-1) if guess.ndim == 2 and guess.shape[-1] == 1 else guess
    if truth.shape != guess.shape or truth.ndim != 1:
        raise ValueError(f"predictions of shape {guess.shape} for references of shape {truth.shape}")
    reason = ""
    if not np.isfinite(guess).all():
        reason = "not all predictions are finite"
    elif np.ptp(guess) == 0 or np.ptp(truth) == 0:
        reason = "predictions are constant" if np.ptp(guess) == 0 else "references are constant"
    if reason:
        _warn(f"{reason}: their correlation is not defined and counts as 0")
        return dict.fromkeys(task.metrics, 0.0)
    scores = {"pearson": stats.pearsonr, "spearman": stats.spearmanr}
    return {name: float(scores[name](truth, guess).statistic) for name in task.metrics}


def _mlm(task: Task, predictions: Any, references: Any) -> dict[str, float]:
    truth, guess = np.asarray(references), np.asarray(predictions)
    guess = guess.argmax(axis=-1) if guess.ndim == truth.ndim + 1 else guess
    if truth.shape != guess.shape:
        raise ValueError(f"predictions of shape {guess.shape} for references of shape {truth.shape}")
    scored = truth != _IGNORED
    if not scored.any():
        raise ValueError("no masked token among the references: nothing to score")
    return {"accuracy": float((guess[scored] == truth[scored]).mean())}


def _span(task: Task, predictions: Any, references: Any) -> dict[str, float]:
    exact, overlap = [], []
    for prediction, accepted in zip(predictions, references, strict=True):
        if isinstance(accepted, str) or not len(accepted):
            raise ValueError(f"the references of a span must be lists of accepted texts, not {accepted!r}")
        exact.append(max(_normalised(prediction) == _normalised(answer) for answer in accepted))
        overlap.append(max(_token_f1(prediction, answer) for answer in accepted))
    return {"exact_match": statistics.fmean(exact), "f1": statistics.fmean(overlap)}


def _normalised(text: str) -> str:
    """Lower case, without punctuation, articles and extra blanks (evaluate-v1.1.py of SQuAD)."""
    bare = "".join(character for character in text.lower() if character not in string.punctuation)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", bare).split())


def _token_f1(prediction: str, answer: str) -> float:
    guess, truth = _normalised(prediction).split(), _normalised(answer).split()
    common = sum((Counter(guess) & Counter(truth)).values())
    return 2 * common / (len(guess) + len(truth)) if common else 0.0


def _warn(message: str) -> None:
    warnings.warn(message, UserWarning, stacklevel=4)
