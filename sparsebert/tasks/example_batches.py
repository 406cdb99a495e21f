"""Batches of a task's examples, drawn at random: for work that reads a few hundred of them, in no epochs."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from sparsebert.tasks.collation import collate
from sparsebert.tasks.encoding import encode
from sparsebert.tasks.examples import Example, Examples, Tagged
from sparsebert.tasks.registry import Task
from sparsebert.tasks.text_format import TextFormat

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_TARGETS = ("labels", "start_positions", "end_positions")


def example_batches(
    rows: Examples,
    task: Task,
    tokenizer: PreTrainedTokenizerBase,
    text_format: TextFormat,
    *,
    count: int | None = None,
    batch_size: int = 32,
    seed: int = 0,
    labels: bool = False,
    outputs: Sequence[int] | None = None,
) -> list[dict[str, Any]]:
    """Encode examples as batches for a model, examples of similar length together.

    Args:
        rows: Examples of the task. Running text is joined and cut into blocks, which are then drawn.
        task: The task.
        tokenizer: Tokenizer of the model.
        text_format: Maximum length and template.
        count: Most examples to draw, without replacement; of questions, windows. None for all.
        batch_size: Examples per batch.
        seed: Seed of the draw, and of the masks of language modelling.
        labels: Whether the batches hold what the loss needs: labels, or masked tokens.
        outputs: The model's output of each class, as of
            :func:`sparsebert.tasks.label_order.label_positions`; None if they are in the task's order.

    Returns:
        Keyword arguments for the model: tensors [examples, longest of the batch], padded.

    Raises:
        ValueError: As :func:`sparsebert.tasks.encode`.
    """
    from transformers import DataCollatorWithPadding

    draw = random.Random(seed)
    drawn: Any = rows
    if count is not None and not task.models_language:
        drawn = draw.sample(list(rows), min(count, len(rows)))
    if outputs is not None:
        drawn = [_relabelled(row, outputs) for row in drawn]
    encoded = encode(drawn, task, tokenizer, text_format)
    indices = list(range(len(encoded)))
    if count is not None and len(encoded) > count:
        indices = draw.sample(indices, count)
    indices.sort(key=encoded.lengths.__getitem__)
    items = [encoded[index] for index in indices]
    if not labels:
        items = [{name: value for name, value in item.items() if name not in _TARGETS} for item in items]
    batch = collate(task, tokenizer, seed=seed) if labels else DataCollatorWithPadding(tokenizer)
    return [dict(batch(items[at : at + batch_size])) for at in range(0, len(items), batch_size)]


def _relabelled(example: Example | Tagged, outputs: Sequence[int]) -> Example | Tagged:
    if isinstance(example, Tagged):
        return replace(example, tags=tuple(outputs[tag] for tag in example.tags))
    return replace(example, label=outputs[int(example.label)])
