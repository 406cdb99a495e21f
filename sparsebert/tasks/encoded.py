"""Encoded examples: token ids and targets of many examples in one array."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from torch.utils.data import Dataset

from sparsebert.tasks.registry import Task

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Texts per call of the tokenizer: enough for its speed, few enough for memory.
TEXTS_AT_ONCE = 1000

Row = Mapping[str, list[int]]


class Encoded(Dataset[dict[str, Any]]):
    """Encoded examples, as dicts of model inputs and targets.

    Inputs are ``input_ids``, ``attention_mask``, and ``token_type_ids`` if the tokenizer has them. Targets
    are ``labels``, or ``start_positions`` and ``end_positions``. Examples are not padded; one int32 array
    holds all ids, a few bytes per token.

    Attributes:
        lengths: int64 [examples], tokens of each example.
    """

    def __init__(self, rows: Iterable[Row], targets: Mapping[str, Sequence[Any]]) -> None:
        ids: list[np.ndarray] = []
        types: list[np.ndarray] = []
        for row in rows:
            ids.append(np.asarray(row["input_ids"], np.int32))
            if "token_type_ids" in row:
                types.append(np.asarray(row["token_type_ids"], np.int8))
        self.lengths = np.array([len(each) for each in ids], np.int64)
        self._ends = np.cumsum(self.lengths)
        self._ids = np.concatenate([np.empty(0, np.int32), *ids])
        self._types = np.concatenate(types) if types else None
        self._targets = dict(targets)

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, index: int) -> dict[str, Any]:
        end = int(self._ends[index])
        tokens = slice(end - int(self.lengths[index]), end)
        item: dict[str, Any] = {"input_ids": self._ids[tokens].tolist()}
        item["attention_mask"] = [1] * len(item["input_ids"])
        if self._types is not None:
            item["token_type_ids"] = self._types[tokens].tolist()
        return item | {name: values[index] for name, values in self._targets.items()}


def rows_of(encoded: Any) -> Iterator[Row]:
    """Yield the token ids, and token types if there are any, of each text that a tokenizer has encoded."""
    names = [name for name in ("input_ids", "token_type_ids") if name in encoded]
    for values in zip(*(encoded[name] for name in names), strict=True):
        yield dict(zip(names, values, strict=True))


def require_offsets(tokenizer: PreTrainedTokenizerBase, task: Task) -> None:
    """Raise ValueError for a tokenizer that does not tell which characters a token covers."""
    if not tokenizer.is_fast:
        raise ValueError(f"{task.name} needs a fast tokenizer (for offsets), got {type(tokenizer).__name__}")
