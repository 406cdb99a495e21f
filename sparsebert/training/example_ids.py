"""Ids of the examples in a batch, for methods that store data for every training example."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

_ID = "example_id"


class WithExampleIds:
    """A map-style dataset of dicts that adds the position of each example as its id."""

    def __init__(self, examples: Any) -> None:
        self._examples = examples
        if (lengths := getattr(examples, "lengths", None)) is not None:
            self.lengths = lengths

    def __len__(self) -> int:
        return len(self._examples)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {**self._examples[index], _ID: index}


def collate_with_ids(
    collate: Callable[[list[Any]], dict[str, Any]],
) -> Callable[[list[Mapping[str, Any]]], dict[str, Any]]:
    """Return a version of ``collate`` that takes examples with ids and adds the ids to the batch."""

    def collate_examples(examples: list[Mapping[str, Any]]) -> dict[str, Any]:
        plain = [{name: value for name, value in each.items() if name != _ID} for each in examples]
        return {**collate(plain), _ID: torch.tensor([each[_ID] for each in examples])}

    return collate_examples


def take_example_ids(batch: dict[str, Any]) -> torch.Tensor:
    """Remove the ids from a batch and return them, int64 [examples]."""
    ids: torch.Tensor = batch.pop(_ID)
    return ids
