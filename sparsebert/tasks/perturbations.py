"""Seeded changes of texts that keep their labels, to see what a model's answers rest on.

Each is a function of the text, the severity and the seed alone, so every model reads the same changed texts,
and equal texts are changed alike.
"""

from __future__ import annotations

import math
import random
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice, pairwise

from sparsebert.tasks.examples import Example, Examples, Question, Tagged
from sparsebert.tasks.registry import Task
from sparsebert_kernels.errors import unknown

_WORD = re.compile(r"\S+")
_END = re.compile(r"[\s.!?]*$")
# Of Naik et al. 2018: a true clause with a strong negation.
_NEGATION = "and false is not true"


@dataclass(frozen=True)
class Perturbation:
    """A way of changing texts.

    Attributes:
        change: Returns the changed text, from the text, the severity and a random generator.
        severity: The severity where none is named; None if the change has no degrees.
        last_only: Whether only the last text of a pair changes.
        moves_words: Whether words change their places, or are added.
    """

    change: Callable[[str, float, random.Random], str]
    severity: float | None
    last_only: bool = False
    moves_words: bool = False


def _typos(text: str, severity: float, draw: random.Random) -> str:
    words = [(match.start(), match.group()) for match in _WORD.finditer(text)]
    places = {start: swaps for start, word in words if (swaps := list(_swaps(word)))}
    letters = list(text)
    for start in draw.sample(sorted(places), min(_count(severity, len(words)), len(places))):
        at = start + draw.choice(places[start])
        letters[at], letters[at + 1] = letters[at + 1], letters[at]
    return "".join(letters)


def _swaps(word: str) -> Iterator[int]:
    """Yield where two different neighbouring letters stand inside a word, not first or last."""
    for at, (one, two) in enumerate(pairwise(word)):
        if 0 < at < len(word) - 2 and one.isalpha() and two.isalpha() and one.lower() != two.lower():
            yield at


def _casing(text: str, severity: float, draw: random.Random) -> str:
    # A letter such as "ß", whose other case is two, stays.
    cases = [letter.swapcase() for letter in text]
    places = [at for at, other in enumerate(cases) if other != text[at] and len(other) == 1]
    letters = list(text)
    for at in draw.sample(places, min(_count(severity, len(places)), len(places))):
        letters[at] = cases[at]
    return "".join(letters)


def _negation(text: str, severity: float, draw: random.Random) -> str:
    end = _END.search(text)
    at = len(text) if end is None else end.start()
    return f"{text[:at]} {_NEGATION}{text[at:]}"


def _shuffle(text: str, severity: float, draw: random.Random) -> str:
    words = text.split()
    count = _count(severity, len(words))
    if len(words) < 2:
        return text
    places = draw.sample(range(len(words)), max(count, 2))
    moved = [words[at] for at in places]
    # The drawn places in their random order form one cycle, in which no word stays.
    for at, word in zip(places, [*moved[1:], moved[0]], strict=True):
        words[at] = word
    return " ".join(words)


PERTURBATIONS = {
    "typos": Perturbation(_typos, 0.1),
    "casing": Perturbation(_casing, 0.1),
    "negation": Perturbation(_negation, None, last_only=True, moves_words=True),
    "shuffle": Perturbation(_shuffle, 1.0, moves_words=True),
}


def perturbed(
    examples: Examples, task: Task, name: str, *, severity: float | None = None, seed: int = 0
) -> Examples:
    """Return the examples with changed texts.

    - ``typos``: two different neighbouring letters inside a word, not its first or last, change places, as
      the noise "swap" of Belinkov and Bisk 2018 ("Synthetic and Natural Noise Both Break Neural Machine
      Translation"), in the ``severity`` of the words, at least one.
    - ``casing``: the ``severity`` of the letters, at least one, change their case, in both directions. The
      idea is ``change_char_case`` of NL-Augmenter (Dhole et al. 2021), which only raises letters.
    - ``negation``: "and false is not true" is added to the text, before its final punctuation; in a pair, to
      the second text (Naik et al. 2018, "Stress Test Evaluation for Natural Language Inference", who add it
      to the hypothesis).
    - ``shuffle``: the ``severity`` of the words, at least two, leave their places for each other's, and none
      of them stays in its own, as in Sinha et al. 2021 ("UnNatural Language Inference"), of both texts of a
      pair. White space becomes single blanks.

    Of a question about a paragraph, the question changes: answers are parts of the paragraph. Words with tags
    change as one text.

    Args:
        examples: The examples.
        task: Their task.
        name: A name of ``PERTURBATIONS``.
        severity: Share of the words or letters that change, in (0, 1]; None for 0.1, of ``shuffle`` 1.
        seed: Seed of the changes.

    Raises:
        ValueError: For an unknown name, a severity out of range or of a perturbation without degrees,
            language modelling, whose texts are what is predicted, ``negation`` of questions, and
            ``negation`` and ``shuffle`` of words with tags.
    """
    perturbation = require_perturbation(name, severity)
    if task.models_language:
        raise ValueError(
            f"{task.name} is language modelling, whose texts are what is predicted: perturb another task"
        )
    if task.kind == "span" and name == "negation":
        raise ValueError(f"negation adds a clause to a statement, and {task.name} asks questions: omit it")
    if task.kind == "tokens" and perturbation.moves_words:
        raise ValueError(
            f"{name} moves or adds words, and {task.name} has a tag for each in its place: omit it"
        )
    share = severity if severity is not None else perturbation.severity or 1.0

    def changed(text: str) -> str:
        return perturbation.change(text, share, random.Random(f"{seed} {name} {text}"))

    return [_changed(example, perturbation, changed) for example in examples]  # type: ignore[return-value]


def require_perturbation(name: str, severity: float | None = None) -> Perturbation:
    """Return the perturbation of that name. Raises ValueError as :func:`perturbed`."""
    if name not in PERTURBATIONS:
        raise unknown("perturbation", name, PERTURBATIONS)
    if severity is not None and not 0 < severity <= 1:
        raise ValueError(f"severity must be in (0, 1], got {severity:g}")
    perturbation = PERTURBATIONS[name]
    if severity is not None and perturbation.severity is None:
        raise ValueError(f"{name} has no degrees: omit the severity")
    return perturbation


def share_changed(before: Sequence[object], after: Sequence[object]) -> float:
    """Return the share of examples that a perturbation has changed."""
    return sum(one != two for one, two in zip(before, after, strict=True)) / len(before)


def _changed(
    example: Example | Question | Tagged | str, perturbation: Perturbation, changed: Callable[[str], str]
) -> Example | Question | Tagged:
    if isinstance(example, Question):
        return replace(example, question=changed(example.question))
    if isinstance(example, Tagged):
        # Changes that move no words keep every letter's place.
        letters = iter(changed(" ".join(example.words)) + " ")
        words = ["".join(islice(letters, len(word) + 1))[:-1] for word in example.words]
        return replace(example, words=tuple(words))
    assert isinstance(example, Example)
    *others, last = example.texts
    if not perturbation.last_only:
        others = [changed(text) for text in others]
    return replace(example, texts=(*others, changed(last)))


def _count(severity: float, parts: int) -> int:
    # Without the rounding error of 0.1 * 30, which would be 4.
    return max(1, math.ceil(round(severity * parts, 6)))
