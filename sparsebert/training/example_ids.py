"""Which examples a batch holds, for what keeps something of each example of the training data."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

_NUMBER = "example_number"


class Numbered:
    """Map-style examples (dicts) that carry their number."""

    def __init__(self, examples: Any) -> None:
        self._examples = examples
        if (lengths := getattr(examples, "lengths", None)) is not None:
            self.lengths = lengths

    def __len__(self) -> int:
        return len(self._examples)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {**self._examples[index], _NUMBER: index}


def collate_numbered(
    collate: Callable[[list[Any]], dict[str, Any]],
) -> Callable[[list[Mapping[str, Any]]], dict[str, Any]]:
    """A ``collate`` for these examples: its batches hold their numbers beside everything else."""

    def numbered(chosen: list[Mapping[str, Any]]) -> dict[str, Any]:
        plain = [{name: value for name, value in each.items() if name != _NUMBER} for each in chosen]
        return {**collate(plain), _NUMBER: torch.tensor([each[_NUMBER] for each in chosen])}

    return numbered


def take_numbers(batch: dict[str, Any]) -> torch.Tensor:
    """The numbers (int64 [examples]) of a batch, which then holds them no longer."""
    numbers: torch.Tensor = batch.pop(_NUMBER)
    return numbers
