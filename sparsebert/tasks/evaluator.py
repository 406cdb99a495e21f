"""Metrics of a model on a task's validation data."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

from sparsebert.tasks import (
    Encoded,
    EncodedQuestions,
    Examples,
    Task,
    TextFormat,
    answer_texts,
    best_answers,
    collate,
    encode,
    metrics,
)
from sparsebert.tasks.metrics import IGNORED
from sparsebert.tasks.squad import answers_or_none
from sparsebert.tasks.tagged_words import UNREAD, EncodedWords


class Evaluate(Protocol):
    """Maps a model to its metrics; see :func:`evaluator`."""

    def __call__(self, model: nn.Module, answers: dict[str, Any] | None = None) -> dict[str, float]: ...


# Keys of a batch that a model is scored on, not given.
TARGETS = ("labels", "start_positions", "end_positions")
# Tokens of a batch of causal language modelling. GPT-2's logits of them are 0.8 GB.
_TOKENS_OF_A_BATCH = 4096


def evaluator(
    task: Task,
    validation: Mapping[str, Examples],
    tokenizer: Any,
    text_format: TextFormat = TextFormat(),
    *,
    batch_size: int = 32,
    encode: Callable[..., Encoded] = encode,
) -> Evaluate:
    """Return a function that maps a model with the task's head to its metrics on all validation splits.

    The function leaves the model in eval mode. Examples are encoded once; masked language modelling masks
    the same tokens every time. If a dict is passed as ``answers``, the function writes each split's
    predictions into it, as :func:`sparsebert.tasks.metrics.compute` takes them, in the order of the examples;
    not of language modelling.

    Args:
        task: The task.
        validation: Examples by split.
        tokenizer: The model's tokenizer.
        text_format: Format in which the model reads examples.
        batch_size: Examples per batch; fewer of long blocks of causal language modelling.
        encode: :func:`sparsebert.tasks.encode`, or a version of it that caches its results.

    Raises:
        ValueError: As :func:`sparsebert.tasks.encode`.
    """
    encoded = {
        split: encode(examples, task, tokenizer, text_format) for split, examples in validation.items()
    }
    collator = collate(task, tokenizer)

    def evaluate(model: nn.Module, answers: dict[str, Any] | None = None) -> dict[str, float]:
        scores: dict[str, float] = {}
        for split, examples in encoded.items():
            # Sorting by length saves padding. Windows of questions and words keep their order.
            sorts = not isinstance(examples, EncodedQuestions | EncodedWords)
            order = np.argsort(examples.lengths, kind="stable") if sorts else None
            size = batch_size
            if task.kind == "clm":
                longest = int(examples.lengths.max(initial=1))
                size = max(1, min(batch_size, _TOKENS_OF_A_BATCH // longest))
            loader = DataLoader(examples, size, sampler=order, collate_fn=collator)
            predictions, references = _answers(task, model, examples, loader)
            scores |= metrics.compute(task, predictions, references, split=split)
            if answers is not None and not task.models_language:
                answers[split] = predictions if order is None else predictions[np.argsort(order)]
        return scores

    return evaluate


def first_inputs(
    task: Task,
    examples: Examples,
    tokenizer: Any,
    text_format: TextFormat = TextFormat(),
    *,
    device: torch.device,
    batch_size: int = 32,
    count: int = 8,
) -> list[dict[str, Tensor]]:
    """Return the model inputs of the first ``count`` batches of a split, without targets."""
    encoded = encode(examples, task, tokenizer, text_format)
    loader = DataLoader(encoded, batch_size, collate_fn=collate(task, tokenizer))
    return [
        {name: value.to(device) for name, value in batch.items() if name not in TARGETS}
        for batch in islice(loader, count)
    ]


def answers_of(task: Task, examples: EncodedQuestions, starts: Sequence[Any], ends: Sequence[Any]) -> Any:
    """Return answers as the metrics take them: texts, or with the score of none where there may be none."""
    return (answers_or_none if task.no_answer else best_answers)(examples, starts, ends)


def tags_of(examples: EncodedWords, logits: Iterable[Tensor]) -> list[np.ndarray]:
    """Return the tag of each word of each example, from logits [tokens, labels]; padding is ignored.

    Logits that are not finite give the tag of no word.
    """
    tags = []
    for index, each in enumerate(logits):
        first_pieces = torch.tensor(examples[index]["labels"]) != IGNORED
        rows = each[: len(first_pieces)][first_pieces]
        predicted = rows.argmax(-1).masked_fill(~rows.isfinite().all(-1), UNREAD)
        tags.append(examples.tags(index, predicted.numpy()))
    return tags


def _answers(
    task: Task, model: nn.Module, examples: Encoded, loader: DataLoader[dict[str, Any]]
) -> tuple[Any, Any]:
    """Return predictions and references for :func:`sparsebert.tasks.metrics.compute`."""
    if isinstance(examples, EncodedQuestions):
        starts: list[np.ndarray] = []
        ends: list[np.ndarray] = []
        for _, output in _outputs(model, loader):
            starts.extend(output.start_logits.float().cpu().numpy())
            ends.extend(output.end_logits.float().cpu().numpy())
        return answers_of(task, examples, starts, ends), answer_texts(examples.questions)
    if isinstance(examples, EncodedWords):
        logits_of = (each for _, output in _outputs(model, loader) for each in output.logits.float().cpu())
        return tags_of(examples, logits_of), [np.array(each.tags) for each in examples.examples]
    predictions: list[Tensor] = []
    references: list[Tensor] = []
    for targets, output in _outputs(model, loader):
        logits, labels = output.logits.float().cpu(), targets["labels"]
        if task.kind == "mlm":
            masked = labels != IGNORED
            logits, labels = logits[masked].argmax(-1), labels[masked]
        elif task.kind == "clm":
            logits, labels = _next_tokens(logits, labels)
        predictions.append(logits)
        references.append(labels)
    return torch.cat(predictions).numpy(), torch.cat(references).numpy()


def _next_tokens(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Return predictions [n, 2] of causal language modelling and their references [n], block by block.

    Args:
        logits: float32 [blocks, tokens, vocabulary].
        labels: int64 [blocks, tokens]; ``IGNORED`` is not scored.
    """
    predictions, references = [], []
    for block, targets in zip(logits, labels, strict=True):
        # Token t is predicted at position t - 1.
        scored = targets[1:] != IGNORED
        block, targets = block[:-1][scored], targets[1:][scored]
        logarithms = -F.cross_entropy(block, targets, reduction="none")
        predictions.append(torch.stack([block.argmax(-1).double(), logarithms.double()], 1))
        references.append(targets)
    return torch.cat(predictions), torch.cat(references)


def _outputs(model: nn.Module, loader: DataLoader[dict[str, Any]]) -> Iterator[tuple[dict[str, Tensor], Any]]:
    """Yield the targets and the outputs of each batch."""
    device = next(model.parameters()).device
    model.eval()
    with torch.no_grad():
        for batch in loader:
            inputs = {name: value.to(device) for name, value in batch.items() if name not in TARGETS}
            yield {name: batch[name] for name in TARGETS if name in batch}, model(**inputs)
