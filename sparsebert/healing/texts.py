"""Texts to heal with, or pairs of texts: encoded once, split into disjoint parts, batched without padding."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

# A text, or a pair of texts that the model reads together.
Text = str | tuple[str, str]

# Share of the texts that decides when weights are kept, and share that judges the result; at most so many.
_HELD_OUT_SHARE, _MOST_HELD_OUT = 0.1, 256
# Fewer distinct texts say too little, in training and as a verdict.
MIN_TEXTS = 100
# A step's tokens are spread over so many batches, each of texts of one length: enough that a step sees texts
# of several lengths, few enough that matrix products stay large.
_BATCHES_IN_A_STEP = 4


@dataclass(frozen=True)
class Row:
    """An encoded text, or pair of texts.

    Attributes:
        ids: Token ids.
        segments: For each token of a pair, which text it is of, where the model reads that.
    """

    ids: tuple[int, ...]
    segments: tuple[int, ...] | None = None

    def __len__(self) -> int:
        """Return the number of tokens."""
        return len(self.ids)


@dataclass(frozen=True)
class HealingTexts:
    """Encoded texts in three disjoint parts.

    Attributes:
        train: Texts to train on.
        validation: Texts that choose the learning rate and the best state.
        judge: Texts that neither train nor choose.
    """

    train: tuple[Row, ...]
    validation: tuple[Row, ...]
    judge: tuple[Row, ...]


def encode(texts: Sequence[Text], tokenizer: Any, max_length: int, seed: int) -> HealingTexts:
    """Encode texts and split them.

    Texts with the same tokens count once, so that no text is in two parts.

    Args:
        texts: The texts, or pairs of texts.
        tokenizer: Tokenizer of the model.
        max_length: Tokens at which a text is cut; of a pair, the longer text first.
        seed: Seed of the split.

    Raises:
        ValueError: There are fewer than ``MIN_TEXTS`` different texts.
    """
    encoded = tokenizer(list(texts), truncation=True, max_length=max_length)
    segments = encoded.get("token_type_ids") if isinstance(texts[0], tuple) else None
    rows = list(
        dict.fromkeys(
            Row(tuple(ids), None if segments is None else tuple(segments[index]))
            for index, ids in enumerate(encoded["input_ids"])
        )
    )
    if len(rows) < MIN_TEXTS:
        raise ValueError(
            f"healing needs at least {MIN_TEXTS} different texts, got {len(rows)}: a tenth of them decides "
            "and a tenth judges; pass more texts"
        )
    order = np.random.default_rng(seed).permutation(len(rows))
    held_out = min(round(_HELD_OUT_SHARE * len(rows)), _MOST_HELD_OUT)
    shuffled = tuple(rows[index] for index in order)
    return HealingTexts(shuffled[2 * held_out :], shuffled[:held_out], shuffled[held_out : 2 * held_out])


def batches_of_one_length(rows: Sequence[Row], tokens: int) -> Iterator[list[int]]:
    """Yield the indices of texts of one length, as many as have about ``tokens`` tokens together."""
    for indices in _by_length(rows, range(len(rows))).values():
        yield from _parts(rows, indices, tokens)


def training_steps(rows: Sequence[Row], tokens: int, seed: int) -> Iterator[list[list[int]]]:
    """Yield the batches of each optimizer step, without end: the order depends on the seed alone.

    Args:
        rows: The texts.
        tokens: Tokens of a step, about; the last step of a pass may have fewer.
        seed: Seed of the order.

    Yields:
        Indices of the texts of each batch. The texts of a batch have one length, so none is padded.
    """
    epoch = 0
    while True:
        random = np.random.default_rng((seed, epoch))
        shuffled = random.permutation(len(rows)).tolist()
        batches = [
            batch
            for indices in _by_length(rows, shuffled).values()
            for batch in _parts(rows, indices, tokens // _BATCHES_IN_A_STEP)
        ]
        step: list[list[int]] = []
        size = 0
        for index in random.permutation(len(batches)).tolist():
            step.append(batches[index])
            size += _size(rows, batches[index])
            if size >= tokens:
                yield step
                step, size = [], 0
        if step:
            yield step
        epoch += 1


def inputs_of(rows: Sequence[Row], indices: Sequence[int], device: torch.device) -> dict[str, Tensor]:
    """Return the inputs of a model for texts of one length, each int64 [texts, tokens]."""
    inputs = {"input_ids": torch.tensor([rows[index].ids for index in indices], device=device)}
    if rows[indices[0]].segments is not None:
        inputs["token_type_ids"] = torch.tensor([rows[index].segments for index in indices], device=device)
    return inputs


def _by_length(rows: Sequence[Row], indices: Iterable[int]) -> dict[int, list[int]]:
    groups: dict[int, list[int]] = defaultdict(list)
    for index in indices:
        groups[len(rows[index])].append(index)
    return groups


def _parts(rows: Sequence[Row], indices: Sequence[int], tokens: int) -> Iterator[list[int]]:
    """Cut texts of one length into equal batches of at most about ``tokens`` tokens."""
    count = max(round(_size(rows, indices) / max(tokens, 1)), 1)
    yield from (part.tolist() for part in np.array_split(np.asarray(indices), min(count, len(indices))))


def _size(rows: Sequence[Row], indices: Sequence[int]) -> int:
    return len(indices) * len(rows[indices[0]])
