"""Questions about a paragraph of a dozen words."""

from __future__ import annotations

from sparsebert.tasks import Question

WORDS = "the cat sat on the mat in the rain . "


def question(answer: str, start: int, context: str = WORDS, asked: str = "the cat") -> Question:
    """A question whose only answer begins at a character of the context; without an answer if it is empty."""
    return Question("q", asked, context, ((answer, start),) if answer else ())
