"""Fused layers on a GPU under a compiler: one graph, one operator for query, key and value."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from sparsebert import fuse_, sparsify_
from tests.fuse.packed_models import (
    MARKS,
    PADDED,
    answers,
    as_on_a_gpu,
    blocks,
    fused,
    inputs,
    made,
    ragged,
    same,
    wide,
)

__all__ = ["as_on_a_gpu"]
pytestmark = MARKS


@pytest.fixture(autouse=True)
def _fresh_compiler() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


class Graphs:
    """A backend that keeps the graphs it is given, and runs them."""

    def __init__(self) -> None:
        self.graphs: list[Any] = []

    def __call__(self, graph: torch.fx.GraphModule, _: Any) -> Any:
        self.graphs.append(graph)
        return graph.forward

    def operators(self, name: str) -> list[Any]:
        return [node for node in self.graphs[-1].graph.nodes if name in str(node.target)]


@pytest.mark.parametrize("mask", [PADDED, None])
def test_the_sparse_model_is_one_graph_with_four_products_a_layer(mask: Tensor | None) -> None:
    model = wide()
    sparsify_(model, blocks(model), format="panel")
    expected = answers(model, mask)
    graphs = Graphs()
    compiled = torch.compile(model, backend=graphs, fullgraph=True)
    assert same(answers(compiled, mask), expected)
    assert len(graphs.graphs) == 1
    products = graphs.operators("sparsebert.linear")
    residuals = [len(node.args) > 9 and node.args[9] is not None for node in products]
    assert residuals == 2 * [False, True, False, True]


def test_without_fused_layers_query_key_and_value_are_one_operator_too(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from sparsebert_kernels.cuda import backend

    monkeypatch.setattr(backend, "covers", lambda format, device: format == "panel")
    monkeypatch.setattr(backend, "runs_on", lambda x: False)
    model = wide()
    sparsify_(model, blocks(model), format="panel", fuse=False)
    expected = answers(model, PADDED)
    graphs = Graphs()
    compiled = torch.compile(model, backend=graphs)
    assert same(answers(compiled, PADDED), expected)
    assert sum(str(graph.graph).count("sparsebert.linear.default") for graph in graphs.graphs) == 8


@pytest.mark.parametrize("name", ["BertForSequenceClassification", "RobertaForTokenClassification"])
def test_dense_models_compile_whole(name: str) -> None:
    model = fused(name)
    expected = answers(model, PADDED)
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    assert same(answers(compiled, PADDED), expected)


def test_sequences_in_one_row_compile_whole() -> None:
    model = fused("BertModel")
    graphs = Graphs()
    compiled = torch.compile(model, backend=graphs, fullgraph=True)
    with torch.inference_mode():
        expected, answer = model(**ragged(spare=3)), compiled(**ragged(spare=3))
    tokens = int(PADDED.sum())
    assert same(answer.last_hidden_state[0, :tokens], expected.last_hidden_state[0, :tokens])
    assert len(graphs.operators("linear")) == 2 * 4 + 1  # and the pooler


def test_replaced_weights_are_seen() -> None:
    model = fused("BertModel")
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    answers(compiled, PADDED)
    key = model.encoder.layer[0].attention.self.key
    with torch.no_grad():
        key.weight.mul_(2)
    assert same(answers(compiled, PADDED), answers(copy.deepcopy(model), PADDED))
    key.weight = torch.nn.Parameter(torch.ones_like(key.weight))
    assert same(answers(compiled, PADDED), answers(copy.deepcopy(model), PADDED))


def test_hooks_inside_are_called() -> None:
    model = fused("BertModel")
    answers(model, PADDED)
    model.encoder.layer[0].register_forward_hook(lambda module, args, output: output * 0)
    compiled = torch.compile(model, backend="eager")
    unfused = copy.deepcopy(model)
    with pytest.warns(UserWarning, match="hooks"):
        expected = answers(unfused, PADDED)
    assert same(answers(compiled, PADDED), expected)


def test_replaced_modules_are_seen() -> None:
    model = fused("BertModel")
    answers(model, PADDED)
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    attention, output = model.encoder.layer[0].attention.self, model.encoder.layer[1].output
    for parent, name in ((attention, "query"), (output, "dense")):
        linear = getattr(parent, name)
        setattr(parent, name, torch.nn.Linear(linear.in_features, linear.out_features).eval())
        # Before the first call of the compiled model, and after it
        assert same(answers(compiled, PADDED), answers(copy.deepcopy(model), PADDED))


def test_the_first_state_is_the_models_where_a_row_begins_with_padding() -> None:
    model = made("BertForSequenceClassification")
    with torch.inference_mode():
        expected = model(**inputs(PADDED.flip(1))).logits
        answer = torch.compile(fuse_(model), backend="eager", fullgraph=True)(**inputs(PADDED.flip(1))).logits
    assert same(answer, expected)


@torch.inference_mode()
@pytest.mark.parametrize("of_config", [False, True])
def test_hidden_states_are_recorded(of_config: bool) -> None:
    model = made("BertModel")
    model.config.output_hidden_states = of_config
    request = {} if of_config else {"output_hidden_states": True}
    expected = model(**inputs(None), **request).hidden_states
    answer = torch.compile(fuse_(model), backend="eager")(**inputs(None), **request).hidden_states
    assert len(answer) == len(expected) == 3
    assert all(same(*each) for each in zip(answer, expected, strict=True))
