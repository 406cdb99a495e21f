"""Small BERT-like models, tickets for them, and their answers and layers."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sparsebert import Ticket, prune
from sparsebert.nn.sparse_linear import SparseLinear

transformers = pytest.importorskip("transformers")

WIDTH = {
    "hidden_size": 24,
    "num_attention_heads": 3,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "vocab_size": 50,
    "max_position_embeddings": 32,
}
MODELS: dict[str, Callable[[], Any]] = {
    "BertModel": lambda: transformers.BertModel(transformers.BertConfig(**WIDTH)),
    "BertForMaskedLM": lambda: transformers.BertForMaskedLM(transformers.BertConfig(**WIDTH)),
    "BertForSequenceClassification": lambda: transformers.BertForSequenceClassification(
        transformers.BertConfig(**WIDTH)
    ),
    "RobertaForTokenClassification": lambda: transformers.RobertaForTokenClassification(
        transformers.RobertaConfig(**WIDTH)
    ),
    "ElectraForPreTraining": lambda: transformers.ElectraForPreTraining(
        transformers.ElectraConfig(**WIDTH, embedding_size=16)
    ),
    "DistilBertForQuestionAnswering": lambda: transformers.DistilBertForQuestionAnswering(
        transformers.DistilBertConfig(
            dim=24, n_heads=3, hidden_dim=40, n_layers=2, vocab_size=50, max_position_embeddings=32
        )
    ),
}
TOKENS = torch.arange(2, 14).view(2, 6)


def one_layer() -> tuple[Any, Ticket]:
    """A model of one layer, for what takes long, and a ticket for it."""
    torch.manual_seed(0)
    model = transformers.BertModel(transformers.BertConfig(**WIDTH | {"num_hidden_layers": 1})).eval()
    return model, prune(model, "magnitude", sparsity=0.7)


def build(name: str = "BertForSequenceClassification") -> Any:
    torch.manual_seed(0)
    return MODELS[name]().eval()


def pruned(name: str = "BertForSequenceClassification", sparsity: float = 0.7) -> tuple[Any, Ticket]:
    """A model, untouched, and a ticket for it."""
    model = build(name)
    return model, prune(model, "magnitude", sparsity=sparsity)


def answers(model: Any, tokens: Tensor = TOKENS) -> tuple[Tensor, ...]:
    with torch.no_grad():
        return tuple(tensor for tensor in model(tokens).to_tuple() if isinstance(tensor, Tensor))


def masked_answers(model: Any, ticket: Ticket) -> tuple[Tensor, ...]:
    return answers(ticket.apply_(copy.deepcopy(model)))


def sparse_layers(model: nn.Module) -> dict[str, SparseLinear]:
    return {name: module for name, module in model.named_modules() if isinstance(module, SparseLinear)}


def weights(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}
