"""The format in which a model reads the texts of examples; a trained model keeps it in its configuration."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from sparsebert.tasks.registry import Task

# Attribute of a model's configuration that holds the format of its training.
_ATTRIBUTE = "text_format"
_STORED = {
    "max_length": int,
    "doc_stride": int,
    "max_context": bool,
    "null_score_diff_threshold": int | float,
    "n_best_size": int,
    "max_answer_length": int,
}
# Of questions, as run_squad.py and Hugging Face's run_qa.py have them.
N_BEST_SIZE, MAX_ANSWER_LENGTH = 20, 30


@dataclass(frozen=True)
class TextFormat:
    """The format in which a model reads the texts of examples, and how its answers to questions are read.

    Attributes:
        max_length: Maximum tokens per example; None for the task's default.
        template: Text around the texts of an example (:mod:`sparsebert.tasks.prompt_template`); None for the
            texts alone.
        doc_stride: Of questions: tokens between the starts of two windows of a long paragraph, 128 in
            run_squad.py of BERT. None for windows that share 128 tokens, or a quarter of ``max_length`` if
            that is less, as ``stride=128`` means in Hugging Face's run_qa.py.
        max_context: Of questions: whether an answer must start in the window that holds most context of its
            first token, as in run_squad.py; None for no.
        null_score_diff_threshold: Of questions that may have no answer: what the score of none must exceed
            that of the best answer by; None for 0, as in run_squad.py.
        n_best_size: Of questions: best tokens of a window at which an answer may start, and as many at which
            it may end; None for 20.
        max_answer_length: Of questions: maximum tokens of an answer; None for 30.

    Raises:
        ValueError: A number of tokens is not positive, or ``null_score_diff_threshold`` is not finite.
    """

    max_length: int | None = None
    template: str | None = None
    doc_stride: int | None = None
    max_context: bool | None = None
    null_score_diff_threshold: float | None = None
    n_best_size: int | None = None
    max_answer_length: int | None = None

    def __post_init__(self) -> None:
        for name in ("doc_stride", "n_best_size", "max_answer_length"):
            if (tokens := getattr(self, name)) is not None and tokens < 1:
                raise ValueError(f"{name} must be a positive number of tokens, got {tokens}")
        threshold = self.null_score_diff_threshold
        if threshold is not None and not math.isfinite(threshold):
            raise ValueError(f"null_score_diff_threshold must be a finite number, got {threshold}")

    def length(self, task: Task) -> int:
        """Return the maximum tokens of a task's examples."""
        return task.max_length if self.max_length is None else self.max_length

    def over(self, other: TextFormat) -> TextFormat:
        """Return this format with the fields of another where this one has none."""
        given = {name: value for name, value in asdict(self).items() if value is not None}
        return replace(other, **given)

    def for_task(self, task: Task) -> TextFormat:
        """Return the format without what tasks of another kind have."""
        if task.kind != "span":
            return TextFormat(self.max_length, self.template)
        return self if task.no_answer else replace(self, null_score_diff_threshold=None)

    def require(self, task: Task) -> None:
        """Raise ValueError for an option of questions, and a task without them."""
        for name, value in asdict(self).items():
            if value is not None and getattr(self.for_task(task), name) is None:
                which = "questions that may have no answer" if task.kind == "span" else "questions"
                raise ValueError(f"{name} applies to tasks with {which}, {task.name} has none: omit it")

    def record(self, task: Task) -> dict[str, Any]:
        """Return the fields for records: the length, and what else is set; the template has its own."""
        fields = {name: value for name, value in asdict(self).items() if value is not None}
        fields.pop("template", None)
        return {**fields, "max_length": self.length(task)}


def keep_format_(model: Any, task: Task, text_format: TextFormat) -> None:
    """Write the format in which a model is trained into its configuration."""
    setattr(model.config, _ATTRIBUTE, text_format.record(task))


def trained_format(model: Any, task: Task) -> TextFormat:
    """Return the format in which a model was trained, as far as it applies to a task.

    A model that was not trained by this library, or by an older version, has no format.

    Raises:
        ValueError: A field of the configuration holds a value of another type.
    """
    return TextFormat(**_stored(model)).for_task(task)


def trained_length(model: Any) -> int | None:
    """Return the maximum tokens of the examples that a model was trained on; None if it records none.

    Raises:
        ValueError: As :func:`trained_format`.
    """
    length: int | None = _stored(model).get("max_length")
    return length


def _stored(model: Any) -> dict[str, Any]:
    """Return the format in a model's configuration, without fields of newer versions."""
    stored = getattr(getattr(model, "config", None), _ATTRIBUTE, None)
    fields = {name: stored[name] for name in _STORED if name in stored} if isinstance(stored, Mapping) else {}
    for name, value in fields.items():
        if not isinstance(value, _STORED[name]) or (name == "max_length" and value < 1):
            raise ValueError(f"{_ATTRIBUTE} in the model's config.json: {name} cannot be {value!r}")
    return fields
