"""Metrics of a model on validation data: what is computed at once."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sparsebert.tasks import TASKS, TextFormat
from sparsebert.tasks.evaluator import evaluator
from tests import decoders

pytest.importorskip("transformers")


class Uniform(nn.Module):
    """Gives every word the same probability, and records the shapes of its inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.anchor = nn.Parameter(torch.zeros(1))
        self.shapes: list[tuple[int, ...]] = []

    def forward(self, input_ids: Tensor, **inputs: Any) -> Any:
        self.shapes.append(tuple(input_ids.shape))
        return SimpleNamespace(logits=torch.zeros(*input_ids.shape, len(decoders.WORDS)))


def measured(lines: list[str], length: int) -> tuple[Uniform, dict[str, float]]:
    """Evaluate the model on blocks of this length; return it and its metrics."""
    model, tokenizer = Uniform(), decoders.tokenizer()
    tokenizer.pad_token = tokenizer.eos_token
    task = TASKS["wikitext-2-clm"]
    return model, evaluator(task, {"validation": lines}, tokenizer, TextFormat(length))(model)


def test_long_blocks_are_read_a_few_at_a_time() -> None:
    """The logits of 32 blocks of 1024 tokens of GPT-2 would be 6.6 GB."""
    model, metrics = measured(["the film was good and the plot was fine"] * 1200, 1024)
    assert max(rows * tokens for rows, tokens in model.shapes) <= 4096
    assert sum(rows for rows, _ in model.shapes) == math.ceil(1200 * 9 / 1024)
    assert metrics["perplexity"] == pytest.approx(len(decoders.WORDS))


def test_short_blocks_are_read_32_at_a_time() -> None:
    model, _ = measured(["the film was good"] * 100, 8)
    assert model.shapes[0] == (32, 8)
