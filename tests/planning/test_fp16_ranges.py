"""Calibration for fp16: which layers hold their numbers in its range."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from sparsebert.bert import resolve
from sparsebert.planning.fp16_ranges import fp16_ranges
from sparsebert.pruning import prune

transformers = pytest.importorskip("transformers")
UP, DOWN = "encoder.layer.0.intermediate.dense", "encoder.layer.0.output.dense"


def bert() -> Any:
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=30, hidden_size=16, num_attention_heads=2, intermediate_size=24, num_hidden_layers=2
    )
    return transformers.BertModel(config).eval()


BATCHES = [{"input_ids": torch.arange(8).view(1, 8)}, {"input_ids": torch.arange(8, 20).view(2, 6)}]


def test_a_layer_with_outliers_is_found() -> None:
    model = bert()
    ticket = prune(model, sparsity=0.5)
    ranges = fp16_ranges(model, ticket, BATCHES)
    assert ranges.keys() == ticket.masks.keys()
    assert all(found.fits for found in ranges.values())
    with torch.no_grad():
        resolve(model, UP).bias[3] = 1e6  # what the down-projection then reads
    ticket.masks[DOWN][:, 3] = True
    wider = fp16_ranges(model, ticket, BATCHES)
    assert wider[DOWN].input == pytest.approx(1e6, rel=1e-3)
    assert [key for key, found in wider.items() if not found.fits] == [DOWN]
    ticket.masks[DOWN][:, 3] = False  # pruned columns are never read
    assert fp16_ranges(model, ticket, BATCHES)[DOWN].fits


def test_hooks_are_removed_and_batches_needed() -> None:
    model = bert()
    ticket = prune(model, sparsity=0.5)
    with pytest.raises(ValueError, match=r"no batch reaches encoder.layer.0\S+: pass batches"):
        fp16_ranges(model, ticket, [])
    assert not any(module._forward_pre_hooks for module in model.modules())
