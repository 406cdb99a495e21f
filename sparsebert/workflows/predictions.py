"""A file of predictions: one row for each example that a model has answered."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sparsebert.atomic import replacing
from sparsebert.tasks import Example, Examples, Question, Tagged, Task
from sparsebert.tasks.registry import Kind
from sparsebert.tasks.squad import Answer
from sparsebert.tasks.tagged_words import UNREAD

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
        task: A task with classes, scores, spans or tags.
        validation: Examples by split, as the model read them.
        answers: Predictions by split, as of :func:`sparsebert.tasks.evaluator.evaluator`.
        about: Fields with which every row begins, such as the model's name.

    Yields:
        ``split``; ``id``, the number of the example in its split, from 1, or the id of a question; ``texts``
        by column; ``label``; ``prediction``; and ``scores``: of classes the probability of each, of questions
        that may have no answer ``null_score_diff``. The label of a question is the list of its answers; words
        have lists of tags. A prediction that is not finite is None, as are its scores.
    """
    for split, examples in validation.items():
        for number, (example, answer) in enumerate(zip(examples, answers[split], strict=True), start=1):
            prediction, scores = _PREDICTIONS[task.kind](task, answer)
            row = {**(about or {}), "split": split, **_shown(task, example, number), "prediction": prediction}
            yield row if scores is None else {**row, "scores": scores}


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
    if task.kind not in _PREDICTIONS or task.kind == "regression":
        return None
    first, second = (
        [_PREDICTIONS[task.kind](task, answer)[0] for split in one for answer in each[split]]
        for each in (one, two)
    )
    return sum(here != there for here, there in zip(first, second, strict=True)) / len(first)


def _class(task: Task, answer: Any) -> tuple[str | None, dict[str, float | None]]:
    logits = np.asarray(answer, np.float64)
    if not np.isfinite(logits).all():
        return None, dict.fromkeys(task.labels)
    shares = np.exp(logits - logits.max())
    shares /= shares.sum()
    return task.labels[int(logits.argmax())], dict(zip(task.labels, map(float, shares), strict=True))


def _score(task: Task, answer: Any) -> tuple[float | None, None]:
    score = float(np.asarray(answer).squeeze())
    return (score if np.isfinite(score) else None), None


def _answer(task: Task, answer: Any) -> tuple[str, dict[str, float | None] | None]:
    if not isinstance(answer, Answer):
        return answer, None
    difference = answer.null_score_diff
    return answer.text, {"null_score_diff": difference if np.isfinite(difference) else None}


def _tags(task: Task, answer: Any) -> tuple[list[str | None], None]:
    return [task.labels[tag] if tag != UNREAD else None for tag in answer], None


_PREDICTIONS: Mapping[Kind, Callable[[Task, Any], tuple[Any, Any]]] = {
    "classification": _class,
    "regression": _score,
    "span": _answer,
    "tokens": _tags,
}


def _shown(task: Task, example: Any, number: int) -> Row:
    """Return the fields of an example."""
    if isinstance(example, Question):
        texts = {"question": example.question, "context": example.context}
        return {"id": example.id, "texts": texts, "label": [text for text, _ in example.answers]}
    if isinstance(example, Tagged):
        tags = [task.labels[tag] for tag in example.tags]
        return {"id": number, "texts": {task.columns[0]: list(example.words)}, "label": tags}
    assert isinstance(example, Example)
    label = task.labels[int(example.label)] if task.kind == "classification" else float(example.label)
    return {"id": number, "texts": dict(zip(task.columns, example.texts, strict=True)), "label": label}


def _flat(row: Row) -> Iterator[tuple[str, Any]]:
    for name, value in row.items():
        if isinstance(value, dict):
            yield from ((f"{name}.{part}", _cell(each)) for part, each in value.items())
        else:
            yield name, _cell(value)


def _cell(value: Any) -> Any:
    return json.dumps(value, ensure_ascii=False) if isinstance(value, list) else value
