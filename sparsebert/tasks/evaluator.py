"""Metrics of a model on a task's validation data."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from sparsebert.tasks import (
    Encoded,
    EncodedQuestions,
    Examples,
    Task,
    answer_texts,
    best_answers,
    collate,
    encode,
    metrics,
)

_IGNORED = -100  # labels of tokens that are not masked
_TARGETS = ("labels", "start_positions", "end_positions")


def evaluator(
    task: Task,
    validation: Mapping[str, Examples],
    tokenizer: Any,
    *,
    max_length: int | None = None,
    batch_size: int = 32,
    template: str | None = None,
    encode: Callable[..., Encoded] = encode,
) -> Callable[[nn.Module], dict[str, float]]:
    """A function from a model with the task's head to its metrics on all splits; the model ends in eval mode.

    The examples are encoded once by ``encode``, in the ``template`` if there is one. The masks of a language
    model's examples are the same every time. Raises ValueError as :func:`sparsebert.tasks.encode` does.
    """
    encoded = {
        split: encode(examples, task, tokenizer, max_length, template)
        for split, examples in validation.items()
    }
    collator = collate(task, tokenizer)

    def evaluate(model: nn.Module) -> dict[str, float]:
        found: dict[str, float] = {}
        for split, examples in encoded.items():
            # Neighbours of one length: less padding. Windows of SQuAD belong to questions by their order.
            order = (
                None
                if isinstance(examples, EncodedQuestions)
                else np.argsort(examples.lengths, kind="stable")
            )
            loader = DataLoader(examples, batch_size, sampler=order, collate_fn=collator)
            found |= metrics.compute(task, *_answers(task, model, examples, loader), split=split)
        return found

    return evaluate


def first_inputs(
    task: Task,
    examples: Examples,
    tokenizer: Any,
    device: torch.device,
    *,
    max_length: int | None = None,
    template: str | None = None,
    batch_size: int = 32,
    count: int = 8,
) -> list[dict[str, Tensor]]:
    """What a model is given of the first ``count`` batches of a split: no labels."""
    encoded = encode(examples, task, tokenizer, max_length, template)
    loader = DataLoader(encoded, batch_size, collate_fn=collate(task, tokenizer))
    return [
        {name: value.to(device) for name, value in batch.items() if name not in _TARGETS}
        for batch in islice(loader, count)
    ]


def _answers(
    task: Task, model: nn.Module, examples: Encoded, loader: DataLoader[dict[str, Any]]
) -> tuple[Any, Any]:
    """Predictions and references, as :func:`sparsebert.tasks.metrics.compute` takes them."""
    if isinstance(examples, EncodedQuestions):
        starts: list[np.ndarray] = []
        ends: list[np.ndarray] = []
        for _, output in _outputs(model, loader):
            starts.extend(output.start_logits.float().cpu().numpy())
            ends.extend(output.end_logits.float().cpu().numpy())
        return best_answers(examples, starts, ends), answer_texts(examples.questions)
    predictions: list[Tensor] = []
    references: list[Tensor] = []
    for targets, output in _outputs(model, loader):
        logits, labels = output.logits.float().cpu(), targets["labels"]
        if task.kind == "mlm":
            masked = labels != _IGNORED
            logits, labels = logits[masked].argmax(-1), labels[masked]
        predictions.append(logits)
        references.append(labels)
    return torch.cat(predictions).numpy(), torch.cat(references).numpy()


def _outputs(model: nn.Module, loader: DataLoader[dict[str, Any]]) -> Iterator[tuple[dict[str, Tensor], Any]]:
    """Targets and outputs of each batch."""
    device = next(model.parameters()).device
    model.eval()
    with torch.no_grad():
        for batch in loader:
            inputs = {name: value.to(device) for name, value in batch.items() if name not in _TARGETS}
            yield {name: batch[name] for name in _TARGETS if name in batch}, model(**inputs)
