"""Bytes of activations, where one can count them by hand."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sparsebert import prune, sparsify_
from sparsebert.bench.activations import peak_activations
from sparsebert.bench.memory import model_bytes
from tests.sparsify.models import build, pruned

FLOAT = 4


class Wide(nn.Module):
    """10 features to 1000 and back; at the peak the 1000 are there before and after the activation."""

    def __init__(self) -> None:
        super().__init__()
        self.config = SimpleNamespace(vocab_size=50, pad_token_id=0, max_position_embeddings=16)
        self.embed, self.up, self.down = nn.Embedding(50, 10), nn.Linear(10, 1000), nn.Linear(1000, 10)
        self.seen: Any = None

    def forward(self, input_ids: Tensor) -> Tensor:
        self.seen = input_ids
        return self.down(torch.relu(self.up(self.embed(input_ids)).view(-1, 1000)))


def test_counts_what_is_there_at_once() -> None:
    tokens = 3 * 7
    # While relu runs, its input and output are there, and the embedding's has gone.
    assert peak_activations(Wide(), 3, 7) == tokens * 2 * 1000 * FLOAT


def test_leaves_the_model_as_it_was_and_pads_nothing() -> None:
    for training in (True, False):
        model = Wide().train(training)
        peak_activations(model, 2, 4)
        assert model.training is training
        assert (model.seen.shape, 0 in model.seen) == ((2, 4), False)


@pytest.mark.parametrize(("batch", "length"), [(0, 4), (2, 0)])
def test_refuses_what_is_nothing(batch: int, length: int) -> None:
    with pytest.raises(ValueError, match="must be at least 1"):
        peak_activations(Wide(), batch, length)


@pytest.mark.parametrize("name", ["BertModel", "RobertaForTokenClassification"])
def test_refuses_more_tokens_than_there_are_positions(name: str) -> None:
    """32 of them, of which RoBERTa needs two for padding."""
    pytest.importorskip("transformers")
    model = build(name)
    peak_activations(model, 1, 32 if name == "BertModel" else 30)
    with pytest.raises(ValueError, match="exceeds the 32 positions"):
        peak_activations(model, 1, 33 if name == "BertModel" else 31)


def test_other_errors_are_the_model_s_own() -> None:
    model = Wide()
    model.down = nn.Linear(3, 3)
    with pytest.raises(RuntimeError, match="shapes"):
        peak_activations(model, 1, 2)


def test_grows_with_the_batch_alone() -> None:
    pytest.importorskip("transformers")
    model = build()
    one, eight = (peak_activations(model, batch, 6) for batch in (1, 8))
    assert 6 < eight / one <= 8


def test_of_a_sparse_model_is_hardly_that_of_the_dense_one() -> None:
    pytest.importorskip("transformers")
    model, ticket = pruned()
    dense = peak_activations(model, 4, 6)
    assert peak_activations(sparsify_(model, ticket, format="element"), 4, 6) <= 1.5 * dense


class TestModelBytes:
    def test_of_a_dense_model_are_its_parameters_each_once(self) -> None:
        pytest.importorskip("transformers")
        model = build("BertForMaskedLM")
        buffers = sum(buffer.nbytes for buffer in model.buffers())
        assert model_bytes(model) == sum(each.nbytes for each in model.parameters()) + buffers

    @pytest.mark.parametrize("format", ["element", "dense"])
    def test_of_a_sparse_model_are_what_its_layers_hold(self, format: str) -> None:
        pytest.importorskip("transformers")
        model = build()
        before = model_bytes(model)
        layers = sum(each.weight.nbytes for each in model.bert.encoder.modules() if type(each) is nn.Linear)
        sparsify_(model, prune(model, "magnitude", sparsity=0.9), format=format)
        packed = sum(each.nbytes for each in model.modules() if type(each).__name__ == "SparseLinear")
        assert model_bytes(model) == before - layers + packed
