"""Quality after / before: mean cosine to the dense model's outputs, or a task's metric above a guess."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from sparsebert.tasks import Encoded, EncodedQuestions, Task, answer_texts, metrics
from sparsebert.tasks.entity_scores import entity_counts
from sparsebert.tasks.evaluator import answers_of, tags_of
from sparsebert.tasks.registry import ENTITY_METRICS
from sparsebert.tasks.tagged_words import EncodedWords
from sparsebert.tasks.verdict import chance_metrics, undecided_reason

# Resamples of a bootstrap interval, and the share of them below its lower end: a 90 % interval has two ends.
RESAMPLES = 1000
TAIL = 0.05


@dataclass(frozen=True)
class Quality:
    """The quality of a model on held-out texts.

    Attributes:
        value: Mean cosine, or the task's metric.
        keep: Quality after / before: the mean cosine, or the lower end of the 90 % bootstrap interval of the
            metric above a constant guess, divided by that of the dense model.
        low: Lower end of the 90 % bootstrap interval of ``keep`` in both cases.
    """

    value: float
    keep: float
    low: float

    def record(self) -> dict[str, float]:
        """Return the fields as plain JSON values."""
        return asdict(self)


class Measure(Protocol):
    """Judges outputs of :class:`sparsebert.quality.heads.Head`, one tensor a text."""

    @property
    def name(self) -> str:
        """What is measured: "cosine" or a metric's name."""

    @property
    def labels(self) -> bool:
        """Whether labels decide."""

    @property
    def count(self) -> int:
        """Texts, or questions, that are judged."""

    def judge(self, outputs: Sequence[Tensor]) -> Quality: ...


@dataclass(frozen=True)
class Agreement:
    """The mean cosine to the dense model's outputs; a text with several vectors counts as their mean.

    Attributes:
        reference: Outputs of the dense model.
    """

    reference: Sequence[Tensor]
    name: str = "cosine"
    labels: bool = False

    @property
    def count(self) -> int:
        """Number of texts."""
        return len(self.reference)

    def judge(self, outputs: Sequence[Tensor]) -> Quality:
        """Return the quality of outputs in the order of the reference; NaN and inf agree with nothing.

        Raises:
            ValueError: The outputs differ from the reference in number or shape.
        """
        cosines = np.array([_cosine(ours, dense) for ours, dense in _pairs(outputs, self.reference)])
        low = _lower_end(lambda rows: float(cosines[rows].mean()), len(cosines))
        return Quality(float(cosines.mean()), float(cosines.mean()), low)


@dataclass(frozen=True)
class MetricAboveGuess:
    """A task's metric above that of a constant guess, against the dense model on the same rows.

    Attributes:
        task: The task.
        examples: Its encoded examples.
        answers: Correct answers as the metric takes them: labels, or lists of accepted texts.
        guess: Metric of a constant guess.
        dense: Predictions of the dense model.
    """

    task: Task
    examples: Encoded
    answers: Any
    guess: float
    dense: Any = field(repr=False)
    labels: bool = True

    @classmethod
    def of(
        cls, task: Task, rows: Any, examples: Encoded, labels: Any, dense_outputs: Sequence[Tensor]
    ) -> MetricAboveGuess:
        """Return the measure.

        Args:
            task: A task with classes, scores, spans or tags.
            rows: Its held-out examples.
            examples: The same, encoded.
            labels: Label of each row; ignored for spans and tags.
            dense_outputs: Outputs of the dense model's head, one for each encoded example.

        Raises:
            ValueError: The dense model has not learnt the task.
        """
        guess = chance_metrics(task, {task.splits[0]: rows})[task.metric]
        answers: Any
        if isinstance(examples, EncodedQuestions):
            answers = answer_texts(examples.questions)
        elif isinstance(examples, EncodedWords):
            answers = [np.array(each.tags) for each in examples.examples]
        else:
            answers = np.asarray(labels)
        dense = predictions(task, examples, dense_outputs)
        measure = cls(task, examples, answers, guess, dense)
        metric = measure._metric(dense)(np.arange(measure.count))
        if reason := undecided_reason(metric, None, guess):
            raise ValueError(
                f"{task.name}: {measure.name} of the {reason} (a constant guess): nothing to keep; train it "
                "on the task first, or omit the labels"
            )
        return measure

    @property
    def name(self) -> str:
        """Name of the metric."""
        return self.task.metric

    @property
    def count(self) -> int:
        """Number of rows or questions."""
        return len(self.answers)

    def judge(self, outputs: Sequence[Tensor]) -> Quality:
        """Return the quality of the outputs of all encoded examples, in their order."""
        after = self._metric(predictions(self.task, self.examples, outputs))
        before = self._metric(self.dense)

        def kept(rows: np.ndarray) -> float:
            gain = before(rows) - self.guess
            return (after(rows) - self.guess) / gain if gain > 0 else 1.0

        low = _lower_end(kept, self.count)
        return Quality(after(np.arange(self.count)), low, low)

    def _metric(self, predicted: Any) -> Callable[[np.ndarray], float]:
        """Return the metric of predictions as a function of the rows that count."""
        task, name, split = self.task, self.task.metric, self.task.splits[0]
        if task.kind == "span":  # the mean of the questions' scores
            scores = np.array(
                [
                    metrics.compute(task, [text], [accepted], split=split)[name]
                    for text, accepted in zip(predicted, self.answers, strict=True)
                ]
            )
            return lambda rows: float(scores[rows].mean())
        if task.kind == "tokens":
            right, of = _tag_counts(task, predicted, self.answers).T
            return lambda rows: float(right[rows].sum() / max(1, of[rows].sum()))
        if task.metrics[0] == "accuracy":
            right = _classes(predicted) == self.answers
            return lambda rows: float(right[rows].mean())
        return lambda rows: metrics.compute(task, predicted[rows], self.answers[rows], split=split)[name]


def predictions(task: Task, examples: Encoded, outputs: Sequence[Tensor]) -> Any:
    """Return a head's outputs as the metrics take them.

    Args:
        task: The task.
        examples: Its encoded examples.
        outputs: Outputs of a head for each of them.

    Raises:
        ValueError: The head is not one for the task.
    """
    if isinstance(examples, EncodedQuestions):
        if outputs[0].shape[0] != 2:
            raise ValueError(f"{task.name} needs a model that answers questions")
        starts, ends = zip(*(each.float().numpy() for each in outputs), strict=True)
        return answers_of(task, examples, starts, ends)
    if isinstance(examples, EncodedWords):
        if outputs[0].shape[-1] != task.num_labels:
            raise ValueError(
                f"{task.name} needs a head of {task.num_labels} labels for each token, got outputs of the "
                f"shape {list(outputs[0].shape)}"
            )
        return tags_of(examples, (each.float() for each in outputs))
    logits = torch.stack([each.float() for each in outputs]).squeeze(1)
    if logits.dim() != 2 or logits.shape[1] != task.num_labels:
        raise ValueError(
            f"{task.name} needs a head of {task.num_labels} outputs, got outputs of the shape "
            f"{list(logits.shape[1:])}"
        )
    return logits.numpy()


def _tag_counts(task: Task, predicted: Any, correct: Any) -> np.ndarray:
    """Return for each text numerator and denominator of the primary metric: F1 of entities, or accuracy."""
    if task.metrics != ENTITY_METRICS:
        return np.array(
            [((ours == true).sum(), len(true)) for ours, true in zip(predicted, correct, strict=True)]
        )
    names = (metrics.tag_names(task, tags) for tags in (predicted, correct))
    return np.array([(2 * found, ours + theirs) for found, ours, theirs in entity_counts(*names)])


def _classes(logits: np.ndarray) -> np.ndarray:
    """Return the class of each row; -1, which never matches a label, where logits are not finite."""
    return np.where(np.isfinite(logits).all(axis=-1), logits.argmax(axis=-1), -1)


def _cosine(ours: Tensor, dense: Tensor) -> float:
    cosines = torch.cosine_similarity(ours.double(), dense.double(), dim=-1, eps=1e-12)
    return float(cosines.nan_to_num(0.0, 0.0, 0.0).mean())


def _pairs(outputs: Sequence[Tensor], reference: Sequence[Tensor]) -> list[tuple[Tensor, Tensor]]:
    if len(outputs) != len(reference):
        raise ValueError(f"outputs of {len(outputs)} texts cannot be compared with {len(reference)}")
    for ours, dense in zip(outputs, reference, strict=True):
        if ours.shape != dense.shape:
            raise ValueError(
                f"outputs of the shape {list(ours.shape)} cannot be compared with the dense model's "
                f"{list(dense.shape)}"
            )
    return list(zip(outputs, reference, strict=True))


def _lower_end(statistic: Callable[[np.ndarray], float], count: int) -> float:
    """Return the lower end of the 90 % percentile bootstrap interval of a statistic of ``count`` rows."""
    draw = np.random.default_rng(0)
    values = [statistic(draw.integers(count, size=count)) for _ in range(RESAMPLES)]
    return float(np.quantile(values, TAIL))
