"""SQuAD v1.1: its JSON files, and the answer texts that a model's start and end logits point at."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sparsebert.tasks.encoding import EncodedQuestions
from sparsebert.tasks.examples import Question
from sparsebert.tasks.tables import read_text


def read_squad(path: Path) -> list[Question]:
    """The questions of a file, in its order.

    Raises ValueError naming the file, and the question where there is one, for what is not SQuAD v1.1:
    another structure, a question without an answer, an answer that does not stand where it is said to.
    """
    try:
        loaded = json.loads(read_text(path))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}:{error.lineno}: not JSON: {error.msg}") from None
    try:
        return [
            _question(asked, paragraph["context"], path)
            for article in loaded["data"]
            for paragraph in article["paragraphs"]
            for asked in paragraph["qas"]
        ]
    except KeyError as error:
        raise ValueError(f"{path}: not a SQuAD file: something in it has no {error}") from None
    except TypeError as error:
        raise ValueError(f"{path}: not a SQuAD file: {error}") from None


def _question(asked: Any, context: str, path: Path) -> Question:
    answers = tuple((answer["text"], answer["answer_start"]) for answer in asked["answers"])
    return checked(Question(str(asked["id"]), asked["question"], context, answers), str(path))


def checked(question: Question, where: str) -> Question:
    """The question itself. ValueError if it has no answer, or one that its context does not hold there."""
    if not question.answers:
        raise ValueError(f"{where}: question {question.id} has no answer (v1.1 has one for each)")
    for text, start in question.answers:
        if start < 0 or not text or question.context[start : start + len(text)] != text:
            raise ValueError(
                f"{where}: question {question.id}: its context has no {text[:40]!r} at character {start}"
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
    """The text of the best span of each question, in the questions' order.

    ``start_logits``, ``end_logits``: [windows, tokens] in the order of ``encoded``, or a [tokens] for each
    window; tokens beyond a window's own are ignored. A span lies in the context, is at most
    ``max_answer_tokens`` long and begins and ends at one of the ``candidates`` best logits of its window;
    the sum of the two decides, over all windows of the question (BERT's run_squad.py). "" where no span
    is possible. Raises ValueError unless there is a row of logits for each window.
    """
    if len(start_logits) != len(encoded) or len(end_logits) != len(encoded):
        raise ValueError(
            f"{len(start_logits)} rows of start logits and {len(end_logits)} of end logits "
            f"for {len(encoded)} windows"
        )
    best: list[tuple[float, str]] = [(-np.inf, "")] * len(encoded.questions)
    for window, (starts, ends) in enumerate(zip(start_logits, end_logits, strict=True)):
        asked = int(encoded.question_of[window])
        spans = encoded.spans(window)
        score, span = _best_span(
            starts[: len(spans)], ends[: len(spans)], spans, candidates, max_answer_tokens
        )
        if score > best[asked][0]:
            best[asked] = score, encoded.questions[asked].context[span[0] : span[1]]
    return [text for _, text in best]


def _best_span(
    starts: np.ndarray, ends: np.ndarray, spans: np.ndarray, candidates: int, max_tokens: int
) -> tuple[float, tuple[int, int]]:
    """The best score in a window and the characters it stands for; minus infinity if there is no span."""
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
    """Indices of the ``count`` best logits, best first, among the tokens of the context."""
    order = np.argsort(-logits.astype(np.float64), kind="stable")[:count]
    return order[(spans[order, 1] > spans[order, 0]) & np.isfinite(logits[order])]


def answer_texts(questions: Sequence[Question]) -> list[list[str]]:
    """The accepted answers of each question: the references of the metric."""
    return [[text for text, _ in question.answers] for question in questions]
