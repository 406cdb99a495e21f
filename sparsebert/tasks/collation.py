"""Batches: padding, and for masked language modelling the masks."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from sparsebert.tasks.registry import Task, find_task

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Collator = Callable[[list[dict[str, Any]]], dict[str, Tensor]]


def collate(
    task: str | Task,
    tokenizer: PreTrainedTokenizerBase,
    *,
    seed: int = 0,
    pad_to_multiple_of: int | None = None,
) -> Collator:
    """The function that makes a batch of encoded examples: int64 (for scores float32) tensors, padded.

    Masked language modelling chooses 15 % of the tokens and replaces 80 % of those by the mask token and
    10 % by a random one (BERT). The choice follows from ``seed`` and the batch's own tokens and from
    nothing before it, so that a run continued in the middle of an epoch, or read by another number of
    workers, masks what the uninterrupted run masks. Raises ValueError for a tokenizer without a mask token.
    """
    from transformers import DataCollatorForLanguageModeling, DataCollatorWithPadding

    if find_task(task).kind != "mlm":
        padding: Collator = DataCollatorWithPadding(tokenizer, pad_to_multiple_of=pad_to_multiple_of)
        return padding
    if tokenizer.mask_token is None:
        raise ValueError(f"{type(tokenizer).__name__} has no mask token: masked language modelling needs one")
    return _MaskingCollator(
        DataCollatorForLanguageModeling(tokenizer, pad_to_multiple_of=pad_to_multiple_of), seed
    )


class _MaskingCollator:
    """The library's masking, from a random state of each batch's own."""

    def __init__(self, masking: Any, seed: int) -> None:
        self._masking = masking
        self._seed = seed

    def __call__(self, examples: list[dict[str, Any]]) -> dict[str, Tensor]:
        digest = hashlib.blake2b(str(self._seed).encode(), digest_size=8)
        for example in examples:
            digest.update(f" {example['input_ids']}".encode())
        self._masking.generator = torch.Generator().manual_seed(
            int.from_bytes(digest.digest(), "little") >> 1
        )
        batch: dict[str, Tensor] = dict(self._masking(examples))
        return batch
