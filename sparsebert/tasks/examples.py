"""What a task's examples are once read, whatever they were read from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sparsebert.tasks.registry import Task


@dataclass(frozen=True, slots=True)
class Example:
    """One text or a pair of them, and the index of its class (an int) or its score (a float)."""

    texts: tuple[str, ...]
    label: int | float


@dataclass(frozen=True, slots=True)
class Question:
    """A question on a paragraph; ``answers``: accepted texts with the character where each starts."""

    id: str
    question: str
    context: str
    answers: tuple[tuple[str, int], ...]


# Of sentences or pairs, of questions, or of lines of running text.
Examples = Sequence[Example] | Sequence[Question] | Sequence[str]


@dataclass(frozen=True)
class TaskData:
    """A task's examples: ``train``, ``validation`` by split name, and by split what they were read from."""

    task: Task
    train: Examples
    validation: Mapping[str, Examples]
    source: Mapping[str, str]


def require_usable(examples: Examples, task: Task, where: str) -> None:
    """Raise ValueError, naming ``where`` they come from, for no examples, or labels that are all the same."""
    if not examples:
        raise ValueError(f"{where}: no examples")
    if task.kind in ("span", "mlm"):
        return
    found = {example.label for example in examples if isinstance(example, Example)}
    if len(found) == 1:
        only = found.pop()
        shown = task.labels[int(only)] if task.kind == "classification" else only
        raise ValueError(
            f"{where}: all {len(examples)} examples have the label {shown}; nothing can be learnt"
        )
