"""Fused models follow changes of weights and settings."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from sparsebert import compact_, fuse_, prune, sparsify_, unfuse_
from tests.fuse.models import MARKS, answers, close
from tests.ops.special_tensors import imaginary, misaligned, negated
from tests.sparsify.models import WIDTH, build

transformers = pytest.importorskip("transformers")
pytestmark = MARKS


def test_follow_every_change_of_the_weights() -> None:
    model = fuse_(build("BertModel"))
    other = build("BertModel")
    with torch.no_grad():
        for parameter in other.parameters():
            parameter += 0.01 * torch.randn_like(parameter)
    answers(model)
    model.load_state_dict(other.state_dict())
    assert close(answers(model), answers(other))
    with torch.no_grad():
        for each in (model, other):
            each.encoder.layer[1].output.dense.bias += 1
    assert close(answers(model), answers(other))
    for each in (model, other):
        each.encoder.layer[0].output.dense = copy.deepcopy(each.encoder.layer[1].output.dense)
    assert close(answers(model), answers(other))
    for each in (model, other):
        each.encoder.layer[0].attention.self.query.weight = nn.Parameter(torch.zeros(24, 24))
    assert close(answers(model), answers(other))


@pytest.mark.parametrize("form", ["dense", "panel", "compacted"])
def test_follow_changes_through_data(form: str) -> None:
    """An averaged copy of the weights, as training loops write it: torch does not count the change."""
    model = build("BertModel")
    if form == "compacted":
        compact_(model, prune(model, sparsity=0.5, granularity="neuron"))
    elif form != "dense":
        sparsify_(model, prune(model, sparsity=0.7), format=form)
    before = answers(fuse_(model))
    for tensor in (*model.encoder.parameters(), *model.encoder.buffers()):
        if tensor.is_floating_point():
            tensor.data.mul_(1.1)
    assert close(answers(model), answers(unfuse_(copy.deepcopy(model))))
    assert not close(answers(model), before)


@pytest.mark.parametrize("width", [24, 30])
def test_follow_biases_changed_through_data(width: int) -> None:
    """A bias that does not fill whole groups of rows is copied."""
    config = transformers.BertConfig(**WIDTH | {"hidden_size": width})
    model = transformers.BertModel(config).eval()
    before = answers(fuse_(model))
    model.encoder.layer[1].output.dense.bias.data[-1] += 1
    assert close(answers(model), answers(unfuse_(copy.deepcopy(model))))
    assert not close(answers(model), before)


@pytest.mark.parametrize("special", [negated, imaginary, misaligned])
@pytest.mark.parametrize(("path", "name"), [("LayerNorm", "weight"), ("dense", "bias"), ("dense", "values")])
def test_parameters_without_plain_memory(path: str, name: str, special: Callable[[Tensor], Tensor]) -> None:
    model = build("BertModel")
    sparsify_(model, prune(model, sparsity=0.7), format="element")
    module = model.encoder.layer[1].output.get_submodule(path)
    values = getattr(module, name).detach()
    values = special(values + torch.rand_like(values))
    setattr(module, name, values if name == "values" else nn.Parameter(values))
    before = answers(model)
    assert close(answers(fuse_(model)), before)
    getattr(module, name).data.mul_(1.5)
    assert close(answers(model), answers(unfuse_(copy.deepcopy(model))))
    assert not close(answers(model), before)


def test_follow_a_change_of_some_rows_through_data() -> None:
    model = transformers.BertModel(transformers.BertConfig(**WIDTH | {"hidden_size": 384})).eval()
    before = answers(fuse_(model))
    model.encoder.layer[1].attention.self.value.weight.data[37:45].zero_()
    assert close(answers(model), answers(unfuse_(copy.deepcopy(model))))
    assert not close(answers(model), before)


@pytest.mark.parametrize(("path", "name"), [("attention.self", "scaling"), ("output.LayerNorm", "eps")])
def test_follow_settings(path: str, name: str) -> None:
    model = build("BertModel")
    layer = model.encoder.layer[1]
    with torch.no_grad():
        layer.attention.self.query.weight *= 10  # else queries attend evenly at any scale
    before = answers(fuse_(model))
    setattr(layer.get_submodule(path), name, 3.0)
    assert close(answers(model), answers(unfuse_(copy.deepcopy(model))))
    assert not close(answers(model), before)


@pytest.mark.parametrize("format", ["element", "dense", "compact"])
def test_follow_a_checkpoint_loaded_into_sparse_layers(format: str) -> None:
    model = build("BertModel")
    sparsify_(model, prune(model, sparsity=0.7), format=format)
    other = copy.deepcopy(model)
    before = answers(fuse_(model))
    state = {name: tensor * 1.1 for name, tensor in other.state_dict().items()}
    model.load_state_dict(state)
    other.load_state_dict(state)
    assert close(answers(model), answers(other))
    assert not close(answers(model), before)
