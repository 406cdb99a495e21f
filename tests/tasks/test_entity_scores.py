"""Entities that tags mark, and their scores, as seqeval 1.2.2 gives them (``seqeval_scores.jsonl``)."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from sparsebert.tasks.entity_scores import entities, entity_scores, marks_entities

CASES = [json.loads(line) for line in (Path(__file__).parent / "seqeval_scores.jsonl").open()]


@pytest.mark.parametrize("case", CASES, ids=range(len(CASES)))
def test_the_scores_are_those_of_seqeval(case: dict[str, list[str]]) -> None:
    predicted, correct = ([tags.split() for tags in case[name]] for name in ("predicted", "correct"))
    assert entity_scores(predicted, correct) == pytest.approx(case["scores"])


@pytest.mark.parametrize(
    ("tags", "marked"),
    [
        ("O O", set()),
        ("B-PER I-PER O", {("PER", 0, 1)}),
        ("I-PER I-PER O", {("PER", 0, 1)}),  # IOB1
        ("I-PER B-PER", {("PER", 0, 0), ("PER", 1, 1)}),
        ("B-PER I-LOC", {("PER", 0, 0), ("LOC", 1, 1)}),
        ("B-PER E-PER S-LOC", {("PER", 0, 1), ("LOC", 2, 2)}),  # IOBES
        ("B-PER L-PER U-LOC", {("PER", 0, 1), ("LOC", 2, 2)}),  # BILOU
        ("O I-ORG-PART", {("ORG-PART", 1, 1)}),
    ],
)
def test_entities_in_each_scheme(tags: str, marked: set[tuple[str, int, int]]) -> None:
    assert entities(tags.split()) == marked


def test_parts_of_speech_mark_no_entities() -> None:
    assert marks_entities(["B-PER", "I-PER", "O"])
    assert not marks_entities(["NOUN", "VERB"])
    assert not marks_entities(["O", "NOUN"])
