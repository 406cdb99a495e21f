"""Scores of answers where there may be none, against the rules of SQuAD's evaluate-v2.0.py written anew."""

from __future__ import annotations

import random
import re
import string
from collections import Counter

import pytest

from sparsebert.tasks.metrics import compute
from sparsebert.tasks.squad import Answer
from sparsebert.tasks.verdict import chance_metrics
from tests.tasks.questions import question

TEXTS = ("", "the cat", "a cat", "cat sat", "dog", "The dog!", "rain in the mat", "the", ".")


def words(text: str) -> list[str]:
    kept = "".join(letter for letter in text.lower() if letter not in string.punctuation)
    return [word for word in re.sub(r"\b(a|an|the)\b", " ", kept).split() if word]


def pair(prediction: str, accepted: list[str]) -> tuple[float, float]:
    """Exact match and F1 of one question, by the official rules."""
    golds = [words(gold) for gold in accepted if words(gold)] or [[]]
    ours = words(prediction)
    exact = max(float(gold == ours) for gold in golds)
    overlaps = []
    for gold in golds:
        same = sum((Counter(gold) & Counter(ours)).values())
        if not gold or not ours:
            overlaps.append(float(gold == ours))
        elif not same:
            overlaps.append(0.0)
        else:
            precision, recall = same / len(ours), same / len(gold)
            overlaps.append(2 * precision * recall / (precision + recall))
    return exact, max(overlaps)


def by_the_rules(answers: list[Answer], accepted: list[list[str]]) -> dict[str, float]:
    found: dict[str, float] = {}
    for column, name in enumerate(("exact", "f1")):
        scores = [pair(each.text, golds)[column] for each, golds in zip(answers, accepted, strict=True)]
        found[name] = sum(scores) / len(scores)
        for part, has in (("HasAns", True), ("NoAns", False)):
            those = [score for score, golds in zip(scores, accepted, strict=True) if bool(golds) is has]
            if those:
                found[f"{part}_{name}"] = sum(those) / len(those)
        # The threshold is moved past one question after the other, the surest ones first.
        best = total = float(sum(not golds for golds in accepted))
        threshold = 0.0
        for each, golds in sorted(
            zip(answers, accepted, strict=True), key=lambda row: row[0].null_score_diff
        ):
            unasked = -1.0 if each.best else 0.0
            total += pair(each.best, golds)[column] if golds else unasked
            if total > best:
                best, threshold = total, each.null_score_diff
        found |= {f"best_{name}": best / len(answers), f"best_{name}_thresh": threshold}
    return found


def drawn(draw: random.Random) -> tuple[list[Answer], list[list[str]]]:
    accepted = [draw.sample(TEXTS[1:], draw.choice((0, 1, 3))) for _ in range(draw.randint(1, 12))]
    answers = []
    for _ in accepted:
        best, difference = draw.choice(TEXTS), draw.choice((-2.5, -1.0, 0.0, 0.5, 3.0))
        answers.append(Answer("" if difference > 0 else best, best, difference))
    return answers, accepted


def test_all_metrics_are_those_of_the_official_script() -> None:
    draw = random.Random(0)
    for _ in range(500):
        answers, accepted = drawn(draw)
        assert compute("squad2", answers, accepted) == pytest.approx(by_the_rules(answers, accepted))


def test_no_answer_is_right_where_there_is_none() -> None:
    answers = [Answer("", "cat", 2.0), Answer("cat", "cat", -2.0), Answer("", "dog", 1.0)]
    scores = compute("squad2", answers, [[], ["the cat"], ["dog"]])
    assert (scores["exact"], scores["HasAns_exact"], scores["NoAns_exact"]) == (2 / 3, 1 / 2, 1.0)
    # With a threshold of 1, the last question is answered as well, and the first is not.
    assert (scores["best_exact"], scores["best_exact_thresh"]) == (1.0, 1.0)


def test_parts_without_questions_have_no_metric() -> None:
    scores = compute("squad2", [Answer("cat", "cat", -1.0)], [["cat"]])
    assert "NoAns_f1" not in scores
    assert scores["HasAns_f1"] == 1.0


def test_a_model_that_answers_nothing_is_chance() -> None:
    asked = [question("cat", 4), question("", 0), question("", 0)]
    chances = chance_metrics("squad2", {"validation": asked})
    silent = compute("squad2", [Answer("", "", float("inf"))] * 3, [["cat"], [], []])
    assert {name: silent[name] for name in chances} == pytest.approx(chances)
    assert not any("thresh" in name for name in chances)
