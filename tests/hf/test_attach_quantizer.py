"""Which models get to know how they are saved, and which are let alone."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from torch import nn

from sparsebert import densify_, sparsify_
from sparsebert.hf.attach_quantizer import attach_quantizer_
from tests.sparsify.models import pruned

pytest.importorskip("transformers")


def test_a_sparse_model_and_the_encoder_inside_of_it() -> None:
    model, ticket = pruned()
    sparsify_(model, ticket)
    for each in (model, model.bert):
        known = each.hf_quantizer.quantization_config
        assert (known.origin, known.sparsity) == (ticket.metadata, ticket.sparsity)


def test_a_model_inside_of_something_else() -> None:
    model, ticket = pruned()
    ticket.apply_(model)
    sparsify_(nn.ModuleDict({"embedder": model}))
    assert model.hf_quantizer.quantization_config.quant_method == "sparsebert"


def test_not_a_dense_one_nor_one_that_is_dense_again() -> None:
    model, ticket = pruned()
    attach_quantizer_(model)
    assert not hasattr(model, "hf_quantizer")
    densify_(sparsify_(model, ticket))
    for each in (model, model.bert):
        assert not hasattr(each, "hf_quantizer")
        assert not hasattr(each.config, "quantization_config")


def test_not_one_that_another_quantizer_saves() -> None:
    model, ticket = pruned()
    other = SimpleNamespace(quantization_config=SimpleNamespace(quant_method="another"))
    model.hf_quantizer = other
    sparsify_(model, ticket)
    assert model.hf_quantizer is other


def test_what_is_not_said_again_stays_as_it_is_known() -> None:
    model, ticket = pruned()
    sparsify_(model, ticket, tokens=7)
    attach_quantizer_(model, format="csr")
    known = model.hf_quantizer.quantization_config
    assert (known.tokens, known.format, known.origin) == (7, "csr", ticket.metadata)


def test_models_of_others_are_let_alone() -> None:
    model = nn.Sequential(nn.Linear(4, 4))
    model[0].weight.data[0] = 0
    sparsify_(model, filter=lambda *_: True)
    assert not hasattr(model, "hf_quantizer")
