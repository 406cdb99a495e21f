"""A newcomer's twenty questions have answers, and the files that these name exist."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
# Every folder that a newcomer may be looking for, and the languages of the kernels.
ROOMS = (
    "kernels/sparsebert_kernels/formats",
    "kernels/sparsebert_kernels/cpu/src",
    "kernels/sparsebert_kernels/cuda",
    *(
        f"sparsebert/{room}"
        for room in (
            "tickets",
            "cost",
            "nn",
            "pruning",
            "compaction",
            "planning",
            "hf",
            "tasks",
            "interop",
            "mask_learning",
            "training",
            "lottery",
            "bench",
            "report",
            "workflows",
            "cli",
        )
    ),
)


@dataclass(frozen=True)
class Question:
    number: int
    text: str
    paths: tuple[str, ...]


def parse(document: str) -> list[Question]:
    """Return the questions of a document: a numbered heading each, then the paths of its ``Answer:`` line."""
    questions = []
    for section in re.split(r"^## ", document, flags=re.MULTILINE)[1:]:
        heading, _, body = section.partition("\n")
        number, _, text = heading.partition(". ")
        answer = re.search(r"^Answer: (.+?) — ", body, re.MULTILINE | re.DOTALL)
        paths = re.findall(r"`([^`]+)`", answer[1]) if answer else []
        questions.append(Question(int(number), text, tuple(paths)))
    return questions


QUESTIONS = parse((Path(__file__).parent / "questions.md").read_text(encoding="utf-8"))


def test_there_are_twenty_questions_numbered_in_order() -> None:
    assert [question.number for question in QUESTIONS] == list(range(1, 21))


@pytest.mark.parametrize("question", QUESTIONS, ids=lambda question: str(question.number))
def test_an_answer_names_one_or_two_files_that_exist(question: Question) -> None:
    assert len(question.paths) in (1, 2)
    assert [path for path in question.paths if not (ROOT / path).is_file()] == []


@pytest.mark.parametrize("question", QUESTIONS, ids=lambda question: str(question.number))
def test_a_question_does_not_contain_the_name_of_its_file(question: Question) -> None:
    words = set(re.findall(r"[a-z0-9]+", question.text.lower()))
    named = [path for path in question.paths if set(Path(path).stem.strip("_").split("_")) <= words]
    assert named == []


@pytest.mark.parametrize("room", ROOMS)
def test_every_room_is_the_answer_to_a_question(room: str) -> None:
    assert any(path.startswith(f"{room}/") for question in QUESTIONS for path in question.paths)
