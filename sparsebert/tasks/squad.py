"""SQuAD v1.1: its JSON files, and answer texts from a model's start and end logits."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sparsebert.json_object import load_json
from sparsebert.tasks.encoding import EncodedQuestions
from sparsebert.tasks.examples import Question
from sparsebert.tasks.tables import read_text


def read_squad(path: Path) -> list[Question]:
    """Read the questions of a file, in its order.

    Raises:
        ValueError: For a structure other than SQuAD v1.1's, a question without an answer, or an answer that
            is not at its position in the context. The message names the file and the question.
    """
    try:
        loaded = load_json(read_text(path))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}:{error.lineno}: not JSON: {error.msg}") from None
    except ValueError as error:
        raise ValueError(f"{path}: not JSON: {error}") from None
    try:
        return [
            _question(entry, paragraph["context"], path)
            for article in loaded["data"]
            for paragraph in article["paragraphs"]
            for entry in paragraph["qas"]
        ]
    except KeyError as error:
        raise ValueError(f"{path}: not a SQuAD file: an object lacks {error}") from None
    except TypeError as error:
        raise ValueError(f"{path}: not a SQuAD file: {error}") from None


def _question(entry: Any, context: str, path: Path) -> Question:
    answers = tuple((answer["text"], answer["answer_start"]) for answer in entry["answers"])
    return checked(Question(str(entry["id"]), entry["question"], context, answers), str(path))


def checked(question: Question, where: str) -> Question:
    """Return the question. Raises ValueError if it has no answers, or one is not at its position."""
    if not question.answers:
        raise ValueError(f"{where}: question {question.id} has no answer; SQuAD v1.1 requires one")
    for text, start in question.answers:
        if start < 0 or not text or question.context[start : start + len(text)] != text:
            raise ValueError(
                f"{where}: the context of question {question.id} lacks {text[:40]!r} at character {start}"
            )
    return question


def best_answers(
    encoded: EncodedQuestions,
    start_logits: Sequence[np.ndarray] | np.ndarray,
    end_logits: Sequence[np.ndarray] | np.ndarray,
    *,
    candidates: int = 20,
    max_answer_tokens: int = 30,
) -> list[str]:
    """Return the text of the best span of each question, as run_squad.py of BERT does.

    A span lies in the context. Its first and last token are among the tokens with the best start and end
    logits of its window. Spans from all windows of a question are ranked by the sum of the two logits.

    Args:
        encoded: The questions.
        start_logits: [windows, tokens], or [tokens] for each window; logits beyond the last token of a window
            are ignored.
        end_logits: The same for the ends.
        candidates: Number of best logits to consider in each window.
        max_answer_tokens: Maximum tokens of a span.

    Returns:
        One text per question; the empty text if no span is possible.

    Raises:
        ValueError: If the number of rows of logits differs from the number of windows.
    """
    if len(start_logits) != len(encoded) or len(end_logits) != len(encoded):
        raise ValueError(
            f"logits must have one row for each of {len(encoded)} windows, got {len(start_logits)} rows of "
            f"start and {len(end_logits)} of end logits"
        )
    best: list[tuple[float, str]] = [(-np.inf, "")] * len(encoded.questions)
    for window, (starts, ends) in enumerate(zip(start_logits, end_logits, strict=True)):
        question = int(encoded.question_of[window])
        spans = encoded.spans(window)
        score, span = _best_span(
            starts[: len(spans)], ends[: len(spans)], spans, candidates, max_answer_tokens
        )
        if score > best[question][0]:
            best[question] = score, encoded.questions[question].context[span[0] : span[1]]
    return [text for _, text in best]


def _best_span(
    starts: np.ndarray, ends: np.ndarray, spans: np.ndarray, candidates: int, max_tokens: int
) -> tuple[float, tuple[int, int]]:
    """Return the best score in a window and the characters of its span; minus infinity without a span."""
    first = _best_tokens(starts, spans, candidates)
    last = _best_tokens(ends, spans, candidates)
    length = last[None, :] - first[:, None] + 1
    scores = np.where(
        (length >= 1) & (length <= max_tokens), starts[first][:, None] + ends[last][None, :], -np.inf
    )
    if not scores.size or not np.isfinite(scores).any():
        return -np.inf, (0, 0)
    row, column = np.unravel_index(int(np.argmax(scores)), scores.shape)
    return float(scores[row, column]), (int(spans[first[row], 0]), int(spans[last[column], 1]))


def _best_tokens(logits: np.ndarray, spans: np.ndarray, count: int) -> np.ndarray:
    """Return the indices of the ``count`` best logits, best first, that lie in the context."""
    order = np.argsort(-logits.astype(np.float64), kind="stable")[:count]
    return order[(spans[order, 1] > spans[order, 0]) & np.isfinite(logits[order])]


def answer_texts(questions: Sequence[Question]) -> list[list[str]]:
    """Return the accepted answers of each question, the references of the metric."""
    return [[text for text, _ in question.answers] for question in questions]
