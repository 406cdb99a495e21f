"""Batches of encoded examples: padding, and the masks of masked language modelling."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from sparsebert.tasks.metrics import IGNORED
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
    """Return the function that turns encoded examples into a padded batch.

    Masked language modelling selects 15 % of the tokens and replaces 80 % of these by the mask token and
    10 % by a random token (BERT). The selection depends only on ``seed`` and the tokens of the batch, so a
    run that resumes in the middle of an epoch, or with another number of workers, masks the same tokens.
    Causal language modelling labels every token with itself, and padding with -100: models shift the labels.
    Labels of words are padded with -100. Questions and words are padded at their end, whatever the tokenizer
    does, because their targets are positions.

    Args:
        task: The task, or its name.
        tokenizer: The model's tokenizer.
        seed: Seed of the masks.
        pad_to_multiple_of: Pad to a multiple of this number of tokens.

    Returns:
        A function from a list of examples to tensors [batch, tokens]: int64, or float32 for scores.

    Raises:
        ValueError: For masked language modelling with a tokenizer that has no mask token.
    """
    from transformers import (
        DataCollatorForLanguageModeling,
        DataCollatorForTokenClassification,
        DataCollatorWithPadding,
    )

    kind = find_task(task).kind
    if kind in ("span", "tokens") and tokenizer.padding_side != "right":
        tokenizer = copy.copy(tokenizer)
        tokenizer.padding_side = "right"
    if kind == "tokens":
        words: Collator = DataCollatorForTokenClassification(
            tokenizer, pad_to_multiple_of=pad_to_multiple_of, label_pad_token_id=IGNORED
        )
        return words
    if kind != "mlm":
        padding: Collator = DataCollatorWithPadding(tokenizer, pad_to_multiple_of=pad_to_multiple_of)
        return _CausalCollator(padding) if kind == "clm" else padding
    if tokenizer.mask_token is None:
        raise ValueError(
            f"masked language modelling needs a tokenizer with a mask token, got {type(tokenizer).__name__}"
        )
    return _MaskingCollator(
        DataCollatorForLanguageModeling(tokenizer, pad_to_multiple_of=pad_to_multiple_of), seed
    )


class _CausalCollator:
    """Padding, and labels for causal language modelling."""

    def __init__(self, padding: Collator) -> None:
        self._padding = padding

    def __call__(self, examples: list[dict[str, Any]]) -> dict[str, Tensor]:
        batch = dict(self._padding(examples))
        # By the attention mask: the padding token may be the end token, which is predicted.
        batch["labels"] = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, IGNORED)
        return batch


class _MaskingCollator:
    """The masking collator of transformers, seeded by the content of each batch."""

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
