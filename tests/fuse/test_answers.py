"""Answers of fused models: those of the plain models, in every family."""

from __future__ import annotations

import copy

import pytest
import torch

from sparsebert import compact_, fuse_, prune, sparsify_, unfuse_
from tests.fuse.models import FAMILIES, MARKS, MASK, TOKENS, answers, close, make
from tests.sparsify.models import build

pytestmark = MARKS


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@pytest.mark.parametrize("name", FAMILIES)
def test_are_those_of_the_model(name: str, implementation: str) -> None:
    model = make(name)
    if not name.startswith("MPNet"):  # which has one implementation
        model.set_attn_implementation(implementation)
    expected = [answers(model), answers(model, None)]
    assert fuse_(model) is model
    for answer, plain in zip((answers(model), answers(model, None)), expected, strict=True):
        assert close(answer, plain)


@pytest.mark.parametrize("format", ["auto", "element", "vector", "compact", "dense", "csr", "panel"])
@pytest.mark.parametrize("fuse_first", [False, True])
def test_are_those_of_the_sparse_model(format: str, fuse_first: bool) -> None:
    model = build("BertModel")
    ticket = prune(model, sparsity=0.7)
    if fuse_first:
        fuse_(model)
    sparsify_(model, ticket, format=format)
    plain = answers(unfuse_(copy.deepcopy(model)))
    assert close(answers(fuse_(model)), plain)


@pytest.mark.parametrize("granularity", ["head", "neuron", "row", "column"])
@pytest.mark.parametrize("sparse", [False, True])
def test_are_those_of_the_compacted_model(granularity: str, sparse: bool) -> None:
    model = build("BertModel")
    ticket = prune(model, sparsity=0.5, granularity=granularity)
    (sparsify_ if sparse else compact_)(model, ticket)
    plain = answers(model)
    assert close(answers(fuse_(model)), plain)


def test_of_the_same_class_with_the_same_keys() -> None:
    model = build("BertModel")
    with torch.inference_mode():
        plain, fused = model(TOKENS), fuse_(model)(TOKENS)
        as_tuple = model(TOKENS, return_dict=False)
    assert type(plain) is type(fused)
    assert plain.keys() == fused.keys()
    assert isinstance(as_tuple, tuple)


def test_padding_is_zero() -> None:
    model = fuse_(build("BertModel"))
    with torch.inference_mode():
        states = model(TOKENS, attention_mask=MASK.long()).last_hidden_state
    assert not states[~MASK].any()
    assert states[MASK].all(-1).all()
