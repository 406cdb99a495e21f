"""A whole BERT in packed panels: query, key and value as one launch, answers those of the masked model."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor

from sparsebert import Ticket, prune, sparsify_
from sparsebert.nn.sparse_linear import SparseLinear

transformers = pytest.importorskip("transformers")

TOKENS = torch.arange(2, 14).view(2, 6)


def pruned() -> tuple[Any, Ticket]:
    """A model whose matrices are multiples of its blocks, and a ticket that keeps half of them."""
    config = transformers.BertConfig(
        hidden_size=64,
        num_attention_heads=4,
        intermediate_size=128,
        num_hidden_layers=1,
        vocab_size=50,
        max_position_embeddings=32,
    )
    model = transformers.BertModel(config).eval()
    return model, prune(model, "magnitude", sparsity=0.5, granularity="block", block_size=(16, 16))


@torch.no_grad()
def answers(model: Any, device: torch.device) -> Tensor:
    return model(TOKENS.to(device)).last_hidden_state


def query_key_value(model: Any) -> list[SparseLinear]:
    attention = model.encoder.layer[0].attention.self
    return [attention.query, attention.key, attention.value]


def test_answers_are_those_of_the_masked_model(device: torch.device) -> None:
    model, ticket = pruned()
    expected = answers(ticket.apply_(copy.deepcopy(model)), torch.device("cpu"))
    sparsify_(model.to(device), ticket, format="panel", fuse=False)
    torch.testing.assert_close(answers(model, device).cpu(), expected, rtol=1e-3, atol=1e-4)


def test_query_key_and_value_become_views_of_one_weight(device: torch.device) -> None:
    model, ticket = pruned()
    masked = query_key_value(ticket.apply_(copy.deepcopy(model)).to(device))
    sparsify_(model.to(device), ticket, format="panel", fuse=False)
    layers = query_key_value(model)
    assert len({layer.values.untyped_storage().data_ptr() for layer in layers}) == 1
    assert all(torch.equal(layer.weight, dense.weight) for layer, dense in zip(layers, masked, strict=True))
    first = answers(model, device)
    assert torch.equal(answers(model, device), first)


def test_a_weight_that_is_loaded_later_is_joined_anew(device: torch.device) -> None:
    model, ticket = pruned()
    other = ticket.apply_(copy.deepcopy(model))
    with torch.no_grad():
        other.encoder.layer[0].attention.self.key.weight.mul_(2)
    sparsify_(model.to(device), ticket, format="panel", fuse=False)
    answers(model, device)
    model.load_state_dict(other.state_dict())
    expected = answers(other, torch.device("cpu"))
    torch.testing.assert_close(answers(model, device).cpu(), expected, rtol=1e-3, atol=1e-4)
    assert len({layer.values.untyped_storage().data_ptr() for layer in query_key_value(model)}) == 1


def test_training_keeps_weights_apart_and_gives_gradients(device: torch.device) -> None:
    model, ticket = pruned()
    sparsify_(model.to(device), ticket, format="panel", trainable=True)
    answers(model, device)
    model(TOKENS.to(device)).last_hidden_state.square().sum().backward()
    layers = query_key_value(model)
    assert len({layer.values.untyped_storage().data_ptr() for layer in layers}) == 3
    for layer in layers:
        assert layer.values.grad is not None
        assert layer.values.grad.isfinite().all()


def test_biases_that_change_are_joined_anew(device: torch.device) -> None:
    model, ticket = pruned()
    other = ticket.apply_(copy.deepcopy(model))
    sparsify_(model.to(device), ticket, format="panel", fuse=False)
    answers(model, device)
    with torch.no_grad():
        for changed in (model, other):
            attention = changed.encoder.layer[0].attention.self
            attention.query.bias.add_(1)
            attention.key.bias = torch.nn.Parameter(torch.ones_like(attention.key.bias))
    expected = answers(other, torch.device("cpu"))
    torch.testing.assert_close(answers(model, device).cpu(), expected, rtol=1e-3, atol=1e-4)


def test_gradients_flow_after_inference_mode_has_joined_the_weights(device: torch.device) -> None:
    model, ticket = pruned()
    sparsify_(model.to(device), ticket, format="panel", fuse=False)
    with torch.inference_mode():
        model(TOKENS.to(device))
    model(TOKENS.to(device)).last_hidden_state.square().sum().backward()
    gradient = query_key_value(model)[0].bias.grad
    assert gradient is not None
    assert gradient.isfinite().all()
