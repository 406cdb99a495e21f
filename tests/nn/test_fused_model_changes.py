"""A fused base model follows changes between two calls."""

from __future__ import annotations

import copy

import pytest
import torch

from sparsebert import fuse_, prune, sparsify_, unfuse_
from tests.fuse.models import MARKS
from tests.nn.fused_models import FAMILIES, answers, build, close, ids

pytestmark = MARKS


@pytest.mark.parametrize("name", FAMILIES)
def test_of_any_parameter(name: str) -> None:
    model = fuse_(build(name))
    before = answers(model)
    for path, parameter in model.named_parameters():
        original = parameter.detach().clone()
        with torch.no_grad():
            # Not by a factor, which a LayerNorm after it may cancel.
            parameter += torch.linspace(0.5, 1.5, parameter.numel()).view(parameter.shape)
        answer = answers(model)
        assert close(answer, answers(unfuse_(copy.deepcopy(model)))), path
        assert path.endswith(("key.bias", "k.bias", "k_lin.bias")) or not close(answer, before), path
        with torch.no_grad():
            parameter.copy_(original)
    assert close(answers(model), before)


def test_of_a_value_that_the_library_reads_in_place_needs_no_new_description() -> None:
    model = fuse_(build("bert"))
    answers(model)
    layer, described, ends = model.encoder.layer[0], model.encoder._native, model._ends
    for parameter in (layer.output.LayerNorm.weight, model.embeddings.word_embeddings.weight):
        with torch.no_grad():
            parameter *= 1.5
        answer = answers(model)
        assert close(answer, answers(unfuse_(copy.deepcopy(model))))
    assert (model.encoder._native, model._ends) == (described, ends)
    with torch.no_grad():
        layer.output.dense.weight *= 1.5
    assert close(answers(model), answers(unfuse_(copy.deepcopy(model))))
    assert model.encoder._native is not described


def test_of_the_vocabulary() -> None:
    model = fuse_(build("bert"))
    answers(model)
    model.resize_token_embeddings(60)
    tokens = ids()
    tokens[0, 0] = 59
    answer = answers(model, input_ids=tokens)
    assert close(answer, answers(unfuse_(model), input_ids=tokens))


def test_of_the_pooler() -> None:
    model = fuse_(build("bert"))
    answers(model)
    model.pooler = None
    assert len(answers(model)) == 1


@pytest.mark.parametrize("name", FAMILIES)
def test_of_the_dtype(name: str) -> None:
    model = fuse_(build(name)).double()
    with pytest.warns(UserWarning, match=r"torch\.float64"):
        answer = answers(model)
    assert answer[0].dtype == torch.float64
    assert close([each.float() for each in answer], answers(model.float()))


def test_of_the_local_window() -> None:
    model = fuse_(build("modernbert"))
    before = answers(model)
    model.config.local_attention = 2
    answer = answers(model)
    assert close(answer, answers(unfuse_(copy.deepcopy(model))))
    assert not close(answer, before)


@pytest.mark.parametrize("name", FAMILIES)
def test_by_sparsify(name: str) -> None:
    model = fuse_(build(name))
    sparsify_(model, prune(model, sparsity=0.5), format="element")
    answer = answers(model)
    assert close(answer, answers(unfuse_(copy.deepcopy(model))))
