"""Every class of transformers' registry: element, head and neuron tickets, sparse and compacted.

``make test`` runs a few classes, ``make test-all`` all of them.
"""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor

from sparsebert import Ticket, compact_, prune, sparsify_
from sparsebert.bert import is_bert_like
from sparsebert.pruning.unit_trace import example_inputs
from tests import architectures
from tests.sparsify.models import sparse_layers

transformers = pytest.importorskip("transformers")

FEW = (
    "AlbertModel",
    "BertModel",
    "BigBirdModel",
    "CLIPTextModel",
    "DebertaV2Model",
    "DistilBertModel",
    "ElectraModel",
    "GPT2Model",
    "LlamaModel",
    "MPNetModel",
    "MegatronBertModel",
    "ModernBertModel",
    "T5Model",
    "ViTModel",
    "XLMRobertaXLModel",
)
CLASSES = [
    pytest.param(name, marks=() if name in FEW else pytest.mark.slow)
    for name in architectures.classes()
    if name not in architectures.SKIPPED
]


def tensors(output: Any) -> list[Tensor]:
    return [each for each in output.to_tuple() if isinstance(each, Tensor) and each.is_floating_point()]


def run(model: Any, inputs: dict[str, Any]) -> list[Tensor]:
    """Run a model with the random numbers of a fixed seed, which some draw in eval mode too."""
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return tensors(model(**inputs))


def runs(model: Any) -> bool:
    """Whether a model runs on made-up inputs; many want audio, videos, boxes or prompts."""
    try:
        run(copy.deepcopy(model), example_inputs(model))
    except Exception:  # models raise what they like
        return False
    return True


def require_same(outputs: list[Tensor], expected: list[Tensor]) -> None:
    for output, right in zip(outputs, expected, strict=True):
        scale = float(right.abs().max()) if right.numel() else 0.0
        torch.testing.assert_close(output, right, rtol=0, atol=1e-4 * scale + 1e-6, equal_nan=True)


def ticket_of(model: Any, granularity: str, does_run: bool) -> Ticket | None:
    """A ticket, or None where the model has no such units or they cannot be located, which one line says."""
    try:
        return prune(model, sparsity=0.5, granularity=granularity)
    except ValueError as error:
        message = str(error)
    assert granularity != "element"
    assert not is_bert_like(model)
    line = f"no {granularity}s among the layers to prune" if does_run else "does not run on made-up inputs"
    assert line in message or "would keep none of the weights" in message
    assert "\n" not in message
    return None


@pytest.mark.parametrize("name", CLASSES)
def test_every_class(name: str) -> None:
    model = architectures.build(name)
    does_run, weights = runs(model), {key: value.clone() for key, value in model.state_dict().items()}
    for granularity in ("element", "head", "neuron"):
        ticket = ticket_of(model, granularity, does_run)
        assert all(torch.equal(value, weights[key]) for key, value in model.state_dict().items())
        if ticket is None:
            continue
        masked = ticket.apply_(copy.deepcopy(model))
        sparse = sparsify_(copy.deepcopy(model), ticket, format="element")
        assert sparse_layers(sparse)
        if not does_run:
            for layer, module in sparse_layers(sparse).items():
                assert torch.equal(module.weight, masked.get_submodule(layer).weight)
            continue
        inputs = example_inputs(model)
        expected = run(masked, inputs)
        require_same(run(sparse, inputs), expected)
        compacted = copy.deepcopy(model)
        try:
            compact_(compacted, ticket)
        except ValueError:
            assert all(torch.equal(value, weights[key]) for key, value in compacted.state_dict().items())
        else:
            require_same(run(compacted, inputs), expected)


def test_the_sweep_covers_the_registry() -> None:
    if transformers.__version__ != architectures.VERSION:
        pytest.skip(f"the numbers are those of transformers {architectures.VERSION}")
    assert len(CLASSES) == architectures.SWEPT
    assert set(FEW) <= {parameter.values[0] for parameter in CLASSES}
