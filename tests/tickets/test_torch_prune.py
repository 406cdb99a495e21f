"""Tickets of models that were pruned with ``torch.nn.utils.prune``."""

from __future__ import annotations

from typing import Any

import pytest
from torch import nn
from torch.nn.utils import prune as torch_prune

from sparsebert.bert import resolve, structure
from sparsebert.pruning import prune
from sparsebert.tickets.ticket import Ticket
from tests.tickets.models import bert

KEYS = ("encoder.layer.0.output.dense", "encoder.layer.1.attention.self.query")


def test_global_magnitude_equals_ours() -> None:
    model = bert()
    ours = prune(model, sparsity=0.7)
    linears = [(resolve(model, key), "weight") for key in structure(model).linears]
    torch_prune.global_unstructured(linears, torch_prune.L1Unstructured, amount=0.7)
    assert Ticket.from_torch_prune(model) == ours


def test_matrices_that_are_not_pruned_count_as_kept() -> None:
    model = bert()
    torch_prune.random_unstructured(model.bert.encoder.layer[0].output.dense, "weight", amount=96)
    torch_prune.random_unstructured(model.bert.encoder.layer[1].output.dense, "bias", amount=4)
    read = Ticket.from_torch_prune(model)
    assert tuple(read.masks) == structure(model).linears
    assert (~read.masks[KEYS[0]]).sum() == 96
    assert sum((~mask).sum() for mask in read.masks.values()) == 96
    assert (~read.bias_masks["encoder.layer.1.output.dense"]).sum() == 4


def test_any_linear_of_a_plain_model_is_read() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Sequential(nn.Linear(4, 2)))
    linear: Any = model.get_submodule("1.0")
    torch_prune.ln_structured(linear, "weight", amount=1, n=2, dim=0)
    read = Ticket.from_torch_prune(model)
    assert list(read.masks) == ["1.0"]
    assert read.sparsity == 0.5
    torch_prune.remove(linear, "weight")
    read.apply_(model)


def test_what_it_cannot_read_is_refused() -> None:
    with pytest.raises(ValueError, match="no layer of BertForSequenceClassification is pruned"):
        Ticket.from_torch_prune(bert())
    model = bert()
    torch_prune.l1_unstructured(model.get_input_embeddings(), "weight", amount=0.5)
    with pytest.raises(ValueError, match=r"is a Embedding; only masks of nn\.Linear can be read"):
        Ticket.from_torch_prune(model)
    linear: Any = nn.Sequential(nn.Linear(2, 2))
    torch_prune.identity(linear[0], "weight")
    linear[0].weight_mask[0, 0] = 0.5
    with pytest.raises(ValueError, match=r"0\.weight_mask holds values other than 0 and 1"):
        Ticket.from_torch_prune(linear)


def test_an_encoder_below_any_name_has_its_keys() -> None:
    model = bert()
    torch_prune.random_unstructured(model.bert.encoder.layer[0].output.dense, "weight", amount=96)
    expected = Ticket.from_torch_prune(model)
    for name in ("model", "student", "net"):
        wrapped = nn.ModuleDict({name: model})
        assert Ticket.from_torch_prune(wrapped) == expected
        assert list(Ticket.from_torch_prune(wrapped).masks) == list(expected.masks)
