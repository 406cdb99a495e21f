"""Metrics of the tasks, from scikit-learn and scipy where available."""

from __future__ import annotations

import math
import warnings
from typing import Any

import numpy as np

from sparsebert.tasks.answer_scores import answer_scores, no_answer_scores
from sparsebert.tasks.entity_scores import OUTSIDE, entity_scores
from sparsebert.tasks.registry import ENTITY_METRICS, Task, find_task, split_suffix

# Predicted class for a row with non-finite logits; it is the label of no example.
_NO_CLASS = -1
# Label of tokens that are not scored (torch's ignore_index).
IGNORED = -100
# Probability of a token in place of one that is not finite.
_LEAST = 1e-300


def compute(
    task: str | Task, predictions: Any, references: Any, *, split: str | None = None
) -> dict[str, float]:
    """Compute the metrics of a task on one validation split.

    The Matthews correlation is 0 if only one class is predicted; F1 is the F1 of class 1. An undefined
    correlation (constant or non-finite predictions) counts as 0, and non-finite logits (from a run that
    diverged) count as wrong answers; both cause a warning. Spans are scored as SQuAD's scripts do
    (:mod:`sparsebert.tasks.answer_scores`), tags by the entities that they mark
    (:mod:`sparsebert.tasks.entity_scores`); a tag of -1, of a word that was not read, counts as "O".

    Args:
        task: The task, or its name.
        predictions: Classification: classes [n] (integers) or logits [n, classes]. Regression: [n] or [n, 1].
            Spans: texts; or, if there may be none, :class:`sparsebert.tasks.squad.Answer`. Tags: indices of
            labels [words] each. Masked language modelling: token ids of any shape, or logits with the
            vocabulary as the last dimension. Causal language modelling: float64 [n, 2], the predicted id and
            the natural logarithm of the reference's probability.
        references: Classification and regression: [n]. Spans: lists of accepted texts, empty for a question
            without an answer. Tags: indices of labels [words] each. Masked language modelling: token ids;
            -100 is not scored. Causal language modelling: token ids [n].
        split: The validation split; required if the task has several.

    Returns:
        Metrics by name, as shares: 0.91, not 91; perplexities as they are. If the task has several splits,
        the names hold the split: ``accuracy_matched`` and ``accuracy_mismatched`` for MNLI.

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
    score = {
        "classification": _classification,
        "regression": _regression,
        "span": _span,
        "tokens": _tokens,
        "mlm": _mlm,
        "clm": _clm,
    }[task.kind]
    scores = score(task, predictions, references)
    return {name + split_suffix(split): scores[name] for name in task.metrics if name in scores}


def primary(task: str | Task) -> str:
    """Return the name of a task's primary metric in the results of :func:`compute`."""
    return find_task(task).metric


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


def _clm(task: Task, predictions: Any, references: Any) -> dict[str, float]:
    guess, truth = np.asarray(predictions, dtype=np.float64), np.asarray(references)
    if guess.shape != (*truth.shape, 2):
        raise ValueError(f"predictions have shape {guess.shape}, references {truth.shape}; they must agree")
    logarithms = guess[:, 1]
    if not (finite := np.isfinite(logarithms)).all():
        _warn(f"{(~finite).sum()} of {len(finite)} probabilities are not finite: they count as {_LEAST}")
        logarithms = np.where(finite, logarithms, math.log(_LEAST))
    # The exponential of the mean negative logarithm; bounded, because JSON has no infinity.
    perplexity = math.exp(min(-float(logarithms.mean()), -math.log(_LEAST)))
    return {"accuracy": float((guess[:, 0] == truth).mean()), "perplexity": perplexity}


def _span(task: Task, predictions: Any, references: Any) -> dict[str, float]:
    return (no_answer_scores if task.no_answer else answer_scores)(predictions, references)


def _tokens(task: Task, predictions: Any, references: Any) -> dict[str, float]:
    if [len(tags) for tags in predictions] != [len(tags) for tags in references]:
        raise ValueError("predictions must have a tag for each word, as references do")

    if task.metrics == ENTITY_METRICS:
        return entity_scores(tag_names(task, predictions), tag_names(task, references))
    return {"accuracy": float((np.concatenate(predictions) == np.concatenate(references)).mean())}


def tag_names(task: Task, texts: Any) -> list[list[str]]:
    """Return the names of the tags of each text; "O" for a word that was not read."""
    return [[task.labels[tag] if tag >= 0 else OUTSIDE for tag in tags] for tags in texts]


def _warn(message: str) -> None:
    warnings.warn(message, UserWarning, stacklevel=4)
