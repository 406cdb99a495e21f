"""Examples of a task, independent of their origin."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from sparsebert.accounting.fingerprints import Fingerprints, combined, digest_of_examples
from sparsebert.tasks.registry import Task


@dataclass(frozen=True, slots=True)
class Example:
    """One text or a pair of texts with a label: the index of a class (int) or a score (float)."""

    texts: tuple[str, ...]
    label: int | float


@dataclass(frozen=True, slots=True)
class Question:
    """A question about a paragraph.

    Attributes:
        id: Identifier of the question.
        question: Its text.
        context: The paragraph.
        answers: Accepted answers, each with the index of its first character in the context; none if the
            paragraph holds no answer.
    """

    id: str
    question: str
    context: str
    answers: tuple[tuple[str, int], ...]


@dataclass(frozen=True, slots=True)
class Tagged:
    """Words with a tag each: the index of a label."""

    words: tuple[str, ...]
    tags: tuple[int, ...]


# Sentences or pairs, questions, words with tags, or lines of running text.
Examples = Sequence[Example] | Sequence[Question] | Sequence[Tagged] | Sequence[str]


@dataclass(frozen=True)
class TaskData:
    """Examples of a task.

    Attributes:
        task: The task.
        train: Training examples.
        validation: Validation examples by split.
        source: Origin of the examples by split.
        dropped: Rows without a text or a label that were dropped, by split.
    """

    task: Task
    train: Examples
    validation: Mapping[str, Examples]
    source: Mapping[str, str]
    dropped: Mapping[str, int] = field(default_factory=dict)

    @functools.cached_property
    def fingerprints(self) -> Fingerprints:
        """The fingerprints "train", unless there is no training data, and "validation"."""
        splits = {name: digest_of_examples(examples) for name, examples in self.validation.items()}
        train = {"train": digest_of_examples(self.train)} if len(self.train) else {}
        return train | ({"validation": combined(splits)} if splits else {})


def label_counts(examples: Examples) -> Counter[int | float]:
    """Return how often examples, or their words, have each label; nothing for tasks without labels."""
    counts: Counter[int | float] = Counter()
    for example in examples:
        if isinstance(example, Example):
            counts[example.label] += 1
        elif isinstance(example, Tagged):
            counts.update(example.tags)
    return counts


def require_usable(examples: Examples, task: Task, where: str) -> None:
    """Raise ValueError if there are no examples or all labels are equal. ``where`` names their origin."""
    if not examples:
        raise ValueError(f"{where}: no examples")
    labels = label_counts(examples)
    if len(labels) == 1:
        (label,) = labels
        name = task.labels[int(label)] if task.has_classes else label
        raise ValueError(
            f"{where}: all {len(examples)} examples have the label {name}; two different labels are needed"
        )
