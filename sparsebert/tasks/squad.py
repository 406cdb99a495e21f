"""SQuAD 1.1 and 2.0: their JSON files, and answers from a model's start and end logits."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from sparsebert.json_object import load_json
from sparsebert.tasks.examples import Question
from sparsebert.tasks.question_windows import EncodedQuestions
from sparsebert.tasks.tables import read_text
from sparsebert.tasks.text_format import MAX_ANSWER_LENGTH, N_BEST_SIZE


class Answer(NamedTuple):
    """An answer to a question that may have none.

    Attributes:
        text: The answer; the empty text for none.
        best: The best answer other than none; the empty text if no span is possible.
        null_score_diff: Score of no answer minus that of the best answer; infinite without a best answer.
    """

    text: str
    best: str
    null_score_diff: float


def read_squad(path: Path, *, no_answer: bool = False) -> list[Question]:
    """Read the questions of a file, in its order.

    Args:
        path: The file.
        no_answer: Whether questions may have no answer, as in SQuAD 2.0.

    Raises:
        ValueError: For a structure other than SQuAD's, a question without an answer unless that is allowed,
            or an answer that is not at its position in the context. The message names the file and the
            question.
    """
    try:
        loaded = load_json(read_text(path))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}:{error.lineno}: not JSON: {error.msg}") from None
    except ValueError as error:
        raise ValueError(f"{path}: not JSON: {error}") from None
    try:
        return [
            _question(entry, paragraph["context"], path, no_answer)
            for article in loaded["data"]
            for paragraph in article["paragraphs"]
            for entry in paragraph["qas"]
        ]
    except KeyError as error:
        raise ValueError(f"{path}: not a SQuAD file: an object lacks {error}") from None
    except TypeError as error:
        raise ValueError(f"{path}: not a SQuAD file: {error}") from None


def _question(entry: Any, context: str, path: Path, no_answer: bool) -> Question:
    answers = tuple((answer["text"], answer["answer_start"]) for answer in entry["answers"])
    if answers and entry.get("is_impossible"):
        raise ValueError(f"{path}: question {entry['id']} is_impossible, but has answers; remove one of both")
    question = Question(str(entry["id"]), entry["question"], context, answers)
    return checked(question, str(path), no_answer=no_answer)


def checked(question: Question, where: str, *, no_answer: bool = False) -> Question:
    """Return the question. Raises ValueError if it lacks answers, or one is not at its position."""
    if not question.answers and not no_answer:
        raise ValueError(
            f"{where}: question {question.id} has no answer; only SQuAD 2.0 (task squad2) has such questions"
        )
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
) -> list[str]:
    """Return the text of the best span of each question, as run_squad.py of BERT does.

    A span lies in the context. The encoding's text format limits it: the first and last token are among the
    ``n_best_size`` tokens with the best start and end logits of the window, it has ``max_answer_length``
    tokens at most, and with ``max_context`` its window is the one with most context of its first token. Spans
    from all windows of a question are ranked by the sum of the two logits.

    Args:
        encoded: The questions.
        start_logits: [windows, tokens], or [tokens] for each window; logits beyond the last token of a window
            are ignored.
        end_logits: The same for the ends.

    Returns:
        One text per question; the empty text if no span is possible.

    Raises:
        ValueError: If the number of rows of logits differs from the number of windows.
    """
    return [answer.best for answer in answers_or_none(encoded, start_logits, end_logits)]


def answers_or_none(
    encoded: EncodedQuestions,
    start_logits: Sequence[np.ndarray] | np.ndarray,
    end_logits: Sequence[np.ndarray] | np.ndarray,
) -> list[Answer]:
    """Return the answer to each question, or none, as run_squad.py of BERT does with SQuAD 2.0.

    The score of no answer in a window is the sum of the two logits of its first token; that of a question is
    the lowest of its windows. No answer is given if it exceeds the score of the best span by more than
    ``null_score_diff_threshold`` of the encoding's text format, 0 by default.

    Args:
        encoded: As for :func:`best_answers`, which describes the best span.
        start_logits: As for :func:`best_answers`.
        end_logits: As for :func:`best_answers`.

    Raises:
        ValueError: As :func:`best_answers`.
    """
    if len(start_logits) != len(encoded) or len(end_logits) != len(encoded):
        raise ValueError(
            f"logits must have one row for each of {len(encoded)} windows, got {len(start_logits)} rows of "
            f"start and {len(end_logits)} of end logits"
        )
    text_format = encoded.text_format
    candidates = text_format.n_best_size or N_BEST_SIZE
    longest = text_format.max_answer_length or MAX_ANSWER_LENGTH
    best: list[tuple[float, str]] = [(-np.inf, "")] * len(encoded.questions)
    null = [np.inf] * len(encoded.questions)
    for window, (starts, ends) in enumerate(zip(start_logits, end_logits, strict=True)):
        question = int(encoded.question_of[window])
        spans = encoded.spans(window)
        starts, ends = starts[: len(spans)], ends[: len(spans)]
        inside = spans[:, 1] > spans[:, 0]
        begins = inside & encoded.with_max_context(window) if text_format.max_context else inside
        firsts = _best_tokens(starts, begins, candidates)
        score, first, last = _best_span(starts, ends, firsts, _best_tokens(ends, inside, candidates), longest)
        if score > best[question][0]:
            context = encoded.questions[question].context
            best[question] = score, context[spans[first, 0] : spans[last, 1]]
        null[question] = min(null[question], float(starts[0]) + float(ends[0]))
    threshold = text_format.null_score_diff_threshold or 0.0
    return [
        Answer("" if none - score > threshold else text, text, none - score)
        for (score, text), none in zip(best, null, strict=True)
    ]


def _best_span(
    starts: np.ndarray, ends: np.ndarray, first: np.ndarray, last: np.ndarray, max_tokens: int
) -> tuple[float, int, int]:
    """Return the best score in a window and its first and last token; minus infinity without a span."""
    length = last[None, :] - first[:, None] + 1
    scores = np.where(
        (length >= 1) & (length <= max_tokens), starts[first][:, None] + ends[last][None, :], -np.inf
    )
    if not scores.size or not np.isfinite(scores).any():
        return -np.inf, 0, 0
    row, column = np.unravel_index(int(np.argmax(scores)), scores.shape)
    return float(scores[row, column]), int(first[row]), int(last[column])


def _best_tokens(logits: np.ndarray, allowed: np.ndarray, count: int) -> np.ndarray:
    """Return the indices of the ``count`` best logits, best first, that are allowed."""
    order = np.argsort(-logits.astype(np.float64), kind="stable")[:count]
    return order[allowed[order] & np.isfinite(logits[order])]


def answer_texts(questions: Sequence[Question]) -> list[list[str]]:
    """Return the accepted answers of each question, the references of the metric; none for some of squad2."""
    return [[text for text, _ in question.answers] for question in questions]
