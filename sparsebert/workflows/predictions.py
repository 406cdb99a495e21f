"""A file of predictions: one row for each example that a model has answered."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sparsebert.atomic import replacing
from sparsebert.tasks import Example, Examples, Question, Task

ENDINGS = (".csv", ".jsonl")
Row = dict[str, Any]


def require_ending(path: Path) -> None:
    """Raise ValueError unless the name of a file of predictions ends with .csv or .jsonl."""
    if path.suffix not in ENDINGS:
        raise ValueError(f"predictions are written as .csv or .jsonl, got {path.name}")


def prediction_rows(
    task: Task,
    validation: Mapping[str, Examples],
    answers: Mapping[str, Any],
    about: Mapping[str, Any] | None = None,
) -> Iterator[Row]:
    """Yield a row for each example, in the order of the data.

    Args:
        task: A task with classes, scores or spans.
        validation: Examples by split, as the model read them.
        answers: Predictions by split, as of :func:`sparsebert.tasks.evaluator.evaluator`.
        about: Fields with which every row begins, such as the model's name.

    Yields:
        ``split``; ``id``, the number of the example in its split, from 1, or the id of a question; ``texts``
        by column; ``label``; ``prediction``; and for classes ``scores``, the probability of each. The label
        of a question is the list of its answers. A prediction that is not finite is None, as are its scores.
    """
    for split, examples in validation.items():
        predictions: Iterable[tuple[Any, Any]]
        if task.kind == "classification":
            predictions = [_class(task, logits) for logits in np.asarray(answers[split], np.float64)]
        elif task.kind == "regression":
            scores = np.asarray(answers[split], np.float64).reshape(-1)
            predictions = [(float(score) if np.isfinite(score) else None, None) for score in scores]
        else:
            predictions = [(answer, None) for answer in answers[split]]
        for number, (example, (prediction, scores_)) in enumerate(
            zip(examples, predictions, strict=True), start=1
        ):
            row = {**(about or {}), "split": split, **_shown(task, example, number), "prediction": prediction}
            yield row if scores_ is None else {**row, "scores": scores_}


def write_predictions(path: Path, rows: Sequence[Row]) -> None:
    """Write rows to a .csv or .jsonl file, whole or not at all.

    In a .csv file, ``texts`` and ``scores`` become columns such as ``texts.sentence`` and
    ``scores.positive``, and a list becomes JSON.

    Raises:
        ValueError: For another ending.
        OSError: As :func:`sparsebert.atomic.replacing`.
    """
    require_ending(path)
    with replacing(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
        if path.suffix == ".jsonl":
            file.writelines(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n" for row in rows)
            return
        flat = [dict(_flat(row)) for row in rows]
        writer = csv.DictWriter(file, list(dict.fromkeys(name for row in flat for name in row)))
        writer.writeheader()
        writer.writerows(flat)


def share_of_other_answers(task: Task, one: Mapping[str, Any], two: Mapping[str, Any]) -> float | None:
    """Return the share of examples that are answered differently; None for a regression."""
    if task.kind not in ("classification", "span"):
        return None
    first, second = (
        [answer for split in one for answer in _answers(task, each[split])] for each in (one, two)
    )
    return sum(here != there for here, there in zip(first, second, strict=True)) / len(first)


def _answers(task: Task, predictions: Any) -> list[Any]:
    if task.kind == "classification":
        return list(np.asarray(predictions).argmax(-1))
    return list(predictions)


def _class(task: Task, logits: np.ndarray) -> tuple[str | None, dict[str, float | None]]:
    if not np.isfinite(logits).all():
        return None, dict.fromkeys(task.labels)
    shares = np.exp(logits - logits.max())
    shares /= shares.sum()
    return task.labels[int(logits.argmax())], dict(zip(task.labels, map(float, shares), strict=True))


def _shown(task: Task, example: Any, number: int) -> Row:
    """Return the fields of an example."""
    if isinstance(example, Question):
        texts = {"question": example.question, "context": example.context}
        return {"id": example.id, "texts": texts, "label": [text for text, _ in example.answers]}
    assert isinstance(example, Example)
    label = task.labels[int(example.label)] if task.kind == "classification" else float(example.label)
    return {"id": number, "texts": dict(zip(task.columns, example.texts, strict=True)), "label": label}


def _flat(row: Row) -> Iterator[tuple[str, Any]]:
    for name, value in row.items():
        if isinstance(value, dict):
            yield from ((f"{name}.{part}", each) for part, each in value.items())
        else:
            yield name, json.dumps(value, ensure_ascii=False) if isinstance(value, list) else value
