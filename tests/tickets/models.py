"""Tiny models for the tests of tickets."""

from __future__ import annotations

from typing import Any

import pytest
import torch

transformers = pytest.importorskip("transformers")

WIDTH = {
    "hidden_size": 16,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "vocab_size": 40,
}


def bert(head: str = "BertForSequenceClassification", **changes: int) -> Any:
    torch.manual_seed(0)
    return getattr(transformers, head)(transformers.BertConfig(**WIDTH | changes)).eval()
