"""Texts to judge a model by, apart from those that it is calibrated or searched with."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sparsebert.quality.heads import Head
from sparsebert.quality.measures import Agreement, Measure, MetricAboveGuess, Quality
from sparsebert.tasks import Examples, Task, TextFormat, collate, encode
from sparsebert.tasks.evaluator import TARGETS

Batch = dict[str, Tensor]
# From a batch to its last hidden states [texts, tokens, hidden].
Encoder = Callable[[Batch], Tensor]

# The least texts of a part, and the most that improve a figure.
LEAST_TEXTS, MOST_TEXTS = 16, 512


class TextParts(NamedTuple):
    """Disjoint parts of a user's texts: no text is in two of them."""

    training: list[str]
    search: list[str]
    verdict: list[str]


def split_texts(texts: Sequence[str], *, seed: int = 0) -> TextParts:
    """Return a quarter of the texts to search by, a quarter for the verdict, and the rest to calibrate with.

    Equal texts count once. The parts that judge hold at most ``MOST_TEXTS`` each.

    Args:
        texts: The texts.
        seed: Seed of the draw.

    Raises:
        ValueError: There are fewer than four times ``LEAST_TEXTS`` different ones.
    """
    distinct = list(dict.fromkeys(text for text in texts if text.strip()))
    if len(distinct) < 4 * LEAST_TEXTS:
        raise ValueError(
            f"at least {4 * LEAST_TEXTS} different texts are needed to calibrate, to search and to judge, "
            f"got {len(distinct)}: pass more"
        )
    random.Random(seed).shuffle(distinct)
    judging = min(len(distinct) // 4, MOST_TEXTS)
    verdict, search, training = distinct[:judging], distinct[judging : 2 * judging], distinct[2 * judging :]
    return TextParts(training, search, verdict)


@dataclass(frozen=True)
class HeldOut:
    """Batches of held-out texts, and how outputs on them are judged.

    Attributes:
        batches: Inputs of the model, in the order of the texts.
        measure: Judges the outputs.
    """

    batches: Sequence[Batch]
    measure: Measure

    def quality(self, head: Head, states: Sequence[Tensor]) -> Quality:
        """Return the quality of an encoder that returned these hidden states for ``batches``.

        Args:
            head: What follows the encoder.
            states: [texts, tokens, hidden] for each batch.
        """
        return self.measure.judge(_outputs(head, states, self.batches))

    def quality_of(self, head: Head, encoder: Encoder) -> Quality:
        """Return the quality of an encoder that can be called."""
        return self.quality(head, [encoder(batch) for batch in self.batches])


def agreement(batches: Sequence[Batch], head: Head, dense: Encoder) -> HeldOut:
    """Return texts that are judged by their agreement with the dense model.

    Args:
        batches: Inputs of the model.
        head: What follows the dense encoder.
        dense: The dense encoder.
    """
    states = [dense(batch) for batch in batches]
    return HeldOut(batches, Agreement(_outputs(head, states, batches)))


def labelled(
    task: Task,
    rows: Examples,
    tokenizer: Any,
    text_format: TextFormat,
    head: Head,
    dense: Encoder,
    *,
    batch_size: int = 32,
) -> HeldOut:
    """Return labelled rows that are judged by the task's metric above a constant guess.

    Args:
        task: A task with classes, scores, spans or tags.
        rows: Its held-out examples.
        tokenizer: The model's tokenizer.
        text_format: Format in which the model reads examples.
        head: What follows the dense encoder: a head for the task.
        dense: The dense encoder.
        batch_size: Examples per batch.

    Raises:
        ValueError: The head is not one for the task, the dense model has not learnt it, or as
            :func:`sparsebert.tasks.encode`.
    """
    encoded = encode(rows, task, tokenizer, text_format)
    collator = collate(task, tokenizer)
    batches, labels = [], []
    for start in range(0, len(encoded), batch_size):
        batch = collator([encoded[row] for row in range(start, min(start + batch_size, len(encoded)))])
        labels += batch["labels"].tolist() if "labels" in batch else []
        batches.append({name: value for name, value in batch.items() if name not in TARGETS})
    outputs = _outputs(head, [dense(batch) for batch in batches], batches)
    return HeldOut(batches, MetricAboveGuess.of(task, rows, encoded, labels, outputs))


def encoder_of(base: Any) -> Encoder:
    """Return a base model of transformers as a function from a batch to its last hidden states."""

    def run(batch: Mapping[str, Tensor]) -> Tensor:
        with torch.inference_mode():
            states: Tensor = base(**batch).last_hidden_state
        return states

    return run


def _outputs(head: Head, states: Sequence[Tensor], batches: Sequence[Batch]) -> list[Tensor]:
    return [
        output for each, batch in zip(states, batches, strict=True) for output in head.outputs(each, batch)
    ]
