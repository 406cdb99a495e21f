"""Calibration: the batches that show a model's matrices their inputs, and the moments of these inputs."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from sparsebert.bert import Structure, is_bert_like, positions, structure
from sparsebert.one_shot.moments import Moments

# Arguments of models that hold labels.
LABELS = ("labels", "start_positions", "end_positions")


def checked_batches(model: nn.Module, data: Any, *, labels: bool = False) -> list[dict[str, Any]]:
    """Return calibration batches on the model's device, without labels unless ``labels`` is set.

    Raises:
        ValueError: They are not mappings of keyword arguments, there is none, or one holds more tokens than
            the model has positions.
    """
    if isinstance(data, (str, Mapping)) or not isinstance(data, Iterable):
        raise ValueError(
            "data must be batches of keyword arguments for the model, or texts with tokenizer=, "
            f"got a {type(data).__name__}"
        )
    device = next(model.parameters()).device
    batches = []
    for batch in data:
        if not isinstance(batch, Mapping):
            raise ValueError(f"a batch must be a mapping of keyword arguments, got a {type(batch).__name__}")
        batches.append(
            {
                name: value.to(device) if isinstance(value, Tensor) else value
                for name, value in batch.items()
                if labels or name not in LABELS
            }
        )
    if not batches:
        raise ValueError("data holds no batch: calibration needs at least one")
    limit = position_limit(model)
    for batch in batches:
        ids = batch.get("input_ids")
        if limit and isinstance(ids, Tensor) and ids.shape[-1] > limit:
            raise ValueError(
                f"a text of {ids.shape[-1]} tokens is longer than the model's {limit} positions: cut it"
            )
    return batches


def position_limit(model: nn.Module) -> int | None:
    """Return the most tokens of a text, by the model's positions or its configuration; None if unknown."""
    return positions(model) or getattr(getattr(model, "config", None), "max_position_embeddings", None)


# Tokens at which a text is cut.
LONGEST_TEXT = 512


def encoded(
    texts: Sequence[str], tokenizer: Any, batch_size: int = 32, limit: int | None = None
) -> list[Any]:
    """Encode texts with a tokenizer of transformers, those of similar length together; see ``prune_``.

    They are cut at the ``limit`` of the model's positions, if there is one, and at ``LONGEST_TEXT``.
    """
    texts = sorted((text for text in texts if text.strip()), key=len)
    if not texts:
        raise ValueError("data holds no text")
    longest = min(tokenizer.model_max_length, LONGEST_TEXT, limit or LONGEST_TEXT)
    options = {"padding": True, "truncation": True, "max_length": longest, "return_tensors": "pt"}
    starts = range(0, len(texts), batch_size)
    batches = [tokenizer(texts[start : start + batch_size], **options) for start in starts]
    note_cut_texts(batches, longest)
    return batches


def note_cut_texts(batches: Sequence[Mapping[str, Any]], longest: int) -> None:
    """Warn of texts in batches that reach the ``longest`` tokens at which a text is cut."""
    lengths = [int(length) for batch in batches for length in batch["attention_mask"].sum(1)]
    if cut := lengths.count(longest):
        warnings.warn(
            f"{cut} of {len(lengths)} texts reach the {longest} tokens at which a text is cut: the rest "
            "does not calibrate",
            stacklevel=3,
        )


class TokenFilter:
    """Selects the rows of activations that belong to tokens, not to padding.

    Args:
        batches: Batches, with an ``attention_mask`` where texts are padded.
    """

    def __init__(self, batches: Sequence[Mapping[str, Any]]) -> None:
        masks = [batch.get("attention_mask") for batch in batches]
        self._masks = [
            mask.bool() if isinstance(mask, Tensor) and mask.dim() == 2 else None for mask in masks
        ]

    def __call__(self, activations: Iterable[Tensor]) -> Iterator[Tensor]:
        """Yield [tokens, features] of each batch's activations, [texts, length, features]."""
        for states, mask in zip(activations, self._masks, strict=True):
            if mask is not None and states.shape[:2] == mask.shape:
                yield states[mask]
            else:
                yield states.reshape(-1, states.shape[-1])


class Residuals:
    """What the residual connections of a BERT-like layer have lost to pruning, stage by stage.

    In BERT, RoBERTa, DistilBERT and ELECTRA, the input of query, key and value is added to the attention's
    output, and the input of the up-projection to the down-projection's. Other models have no such entries.
    """

    def __init__(self, model: nn.Module) -> None:
        encoder: Structure | None = structure(model) if is_bert_like(model) else None
        self._source: dict[str, str] = {}  # key of a matrix -> first key of the stage with its residual
        if encoder is not None:
            self._source |= {keys[-1]: keys[0] for keys in encoder.heads}
            self._source |= {keys[-1]: keys[0] for keys in encoder.neurons}
        self._lost: dict[str, list[Tensor]] = {}

    def starts_at(self, keys: Sequence[str]) -> bool:
        """Whether the input of a stage is a residual connection's too."""
        return not set(keys).isdisjoint(self._source.values())

    def note(self, keys: Sequence[str], dense: Sequence[Tensor], pruned: Sequence[Tensor]) -> None:
        """Note the inputs ([tokens, in] a batch) of a stage in both models."""
        for key in keys:
            if key in self._source.values():
                self._lost[key] = [y - x for y, x in zip(dense, pruned, strict=True)]

    def of(self, keys: Sequence[str]) -> list[Tensor] | None:
        """Return what the residual connection around the only matrix of a stage has lost, or None."""
        return self._lost.pop(self._source.get(keys[0], ""), None) if len(keys) == 1 else None


def require_finite(moments: Moments, key: str) -> Moments:
    """Return moments; raise ValueError, naming the matrix, if its inputs were NaN or infinite."""
    if not moments.second.isfinite().all():
        raise ValueError(f"the inputs of {key} hold NaN or infinity on the calibration data")
    return moments


def calibration_batches(
    model: nn.Module, data: Any, tokenizer: Any, *, labels: bool = False
) -> list[dict[str, Any]]:
    """Return calibration batches of batches or, with a tokenizer, texts; see :func:`checked_batches`."""
    if (
        not isinstance(data, (str, Mapping))
        and isinstance(data, Sequence)
        and data
        and isinstance(data[0], str)
    ):
        if tokenizer is None:
            raise ValueError("data holds texts: pass the model's tokenizer too")
        data = encoded(data, tokenizer, limit=position_limit(model))
    return checked_batches(model, data, labels=labels)


def describe_batches(batches: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Describe calibration data: texts, tokens and digest."""
    digest, texts, tokens = hashlib.sha256(), 0, 0
    for batch in batches:
        for name, value in sorted(batch.items()):
            if isinstance(value, Tensor):
                digest.update(f"{name} {tuple(value.shape)}\n".encode())
                digest.update(value.cpu().contiguous().view(torch.uint8).numpy().data)
        first = next(value for value in batch.values() if isinstance(value, Tensor))
        texts += len(first)
        mask = batch.get("attention_mask")
        tokens += int(mask.sum()) if isinstance(mask, Tensor) else first.numel()
    return {"texts": texts, "tokens": tokens, "sha256": digest.hexdigest()}
