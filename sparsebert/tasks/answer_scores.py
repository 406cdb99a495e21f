"""Scores of answers to questions, as the official scripts of SQuAD 1.1 and 2.0 compute them."""

from __future__ import annotations

import re
import statistics
import string
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from sparsebert.tasks.squad import Answer


def answer_scores(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> dict[str, float]:
    """Return exact match and F1 as evaluate-v1.1.py does, over questions with an answer.

    Args:
        predictions: One text for each question.
        references: The accepted texts of each question.

    Raises:
        ValueError: For references that are not lists of texts.
    """
    exact, overlap = zip(*map(_of_question, predictions, references), strict=True)
    return {"exact_match": statistics.fmean(exact), "f1": statistics.fmean(overlap)}


def no_answer_scores(predictions: Sequence[Answer], references: Sequence[Sequence[str]]) -> dict[str, float]:
    """Return exact match and F1 as evaluate-v2.0.py does, over all questions, with and without an answer.

    ``best_exact`` and ``best_f1`` are what the best threshold of ``null_score_diff`` would give, which
    ``best_exact_thresh`` and ``best_f1_thresh`` name. The official script finds the same where its
    predictions are the best answers, none of them empty, and its ``--na-prob-file`` the differences.

    Args:
        predictions: The answer to each question.
        references: The accepted texts of each question; no text for a question without an answer.

    Raises:
        ValueError: For references that are not lists of texts.
    """
    has_answer = np.array([bool(len(accepted)) for accepted in references])
    scores = np.array(
        [_or_none(each.text, texts) for each, texts in zip(predictions, references, strict=True)]
    )
    best = np.array([_or_none(each.best, texts) for each, texts in zip(predictions, references, strict=True)])
    differences = np.array([each.null_score_diff for each in predictions])
    silent = np.array([not each.best for each in predictions])
    result: dict[str, float] = {}
    for column, name in enumerate(("exact", "f1")):
        result[name] = float(scores[:, column].mean())
        for part, rows in (("HasAns", has_answer), ("NoAns", ~has_answer)):
            if rows.any():
                result[f"{part}_{name}"] = float(scores[rows, column].mean())
        gains = np.where(has_answer, best[:, column], np.where(silent, 0.0, -1.0))
        result[f"best_{name}"], result[f"best_{name}_thresh"] = _best_threshold(
            gains, differences, int((~has_answer).sum())
        )
    return result


def _best_threshold(gains: np.ndarray, differences: np.ndarray, unanswerable: int) -> tuple[float, float]:
    """Return the best score, and the difference up to which questions are to be answered for it.

    Args:
        gains: float64 [questions], what an answer in place of none adds to the sum of the scores.
        differences: float64 [questions], score of no answer minus that of the best answer.
        unanswerable: Questions without an answer, the sum of the scores where none is answered.
    """
    order = np.argsort(differences, kind="stable")
    sums = np.cumsum([unanswerable, *gains[order]])
    at = int(sums.argmax())
    return float(sums[at]) / len(gains), float(differences[order[at - 1]]) if at else 0.0


def _of_question(prediction: str, accepted: Any) -> tuple[float, float]:
    """Return exact match and F1 of a text, the better of the accepted ones."""
    if isinstance(accepted, str) or not len(accepted):
        raise ValueError(f"references of spans must be lists of accepted texts, got {accepted!r}")
    exact = max(_normalised(prediction) == _normalised(answer) for answer in accepted)
    return float(exact), max(_token_f1(prediction, answer) for answer in accepted)


def _or_none(prediction: str, accepted: Any) -> tuple[float, float]:
    """Return exact match and F1 where the empty text answers a question without an answer."""
    texts = accepted if isinstance(accepted, str) else [text for text in accepted if _normalised(text)]
    if not texts:
        right = float(not _normalised(prediction))
        return right, right
    return _of_question(prediction, texts)


def _normalised(text: str) -> str:
    """Return lower-case text without punctuation, articles and extra blanks, as evaluate-v1.1.py does."""
    bare = "".join(character for character in text.lower() if character not in string.punctuation)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", bare).split())


def _token_f1(prediction: str, answer: str) -> float:
    guess, truth = _normalised(prediction).split(), _normalised(answer).split()
    common = sum((Counter(guess) & Counter(truth)).values())
    return 2 * common / (len(guess) + len(truth)) if common else 0.0
