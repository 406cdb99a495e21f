"""The plan as a table, as JSON and as what a sparse model carries."""

from __future__ import annotations

import copy
import io
import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import rich.console
import torch
from torch import nn

from sparsebert import SparseLinear, plan, prune, sparsify_
from sparsebert.planning.plan import Plan
from tests.planning.masks import model_with, random_mask


class TestReport:
    def made(self) -> Plan:
        return plan(*model_with(random_mask(0.1), random_mask(0.97)), measure=False)

    def test_is_a_table(self) -> None:
        header, first, second, summary, machine = str(self.made()).splitlines()
        assert header.split()[:4] == ["layer", "shape", "sparsity", "format"]
        assert first.split()[:3] == ["0", "768x768", f"{self.made().layers[0].sparsity:.1%}"]
        assert second.endswith("no format is predicted to be faster")
        assert "ms instead of" in summary
        assert machine.endswith("built-in costs")

    def test_is_a_rich_table(self) -> None:
        console = rich.console.Console(file=io.StringIO(), width=200)
        console.print(self.made())
        assert "768x768" in console.file.getvalue()  # type: ignore[attr-defined]

    def test_for_a_gpu_begins_with_the_tokens_and_whether_they_are_the_default(self) -> None:
        model, ticket = model_with(random_mask(0.1))
        default, named = (plan(model, ticket, device="h200", **options) for options in ({}, {"tokens": 512}))
        assert [default.layers[0].tokens, named.layers[0].tokens] == [4096, 512]
        first, *_ = str(default).splitlines()
        assert first == (
            "planned for calls of 4096 tokens, the default on a GPU; tokens= plans for another number"
        )
        assert str(named).splitlines()[0] == "planned for calls of 512 tokens"
        console = rich.console.Console(file=io.StringIO(), width=200)
        console.print(default)
        assert first in console.file.getvalue()  # type: ignore[attr-defined]

    def test_is_json(self) -> None:
        content = json.loads(json.dumps(self.made().to_dict()))
        assert [layer["key"] for layer in content["layers"]] == ["0", "1"]
        assert content["machine"] == self.made().machine

    def test_of_times_that_are_unknown_leaves_them_out(self) -> None:
        model, ticket = model_with(random_mask(0.1, 48, 40))
        assert "instead of" not in plan(model.double(), ticket, measure=False).summary


class TestUse:
    def test_sparsify_follows_a_plan_to_the_letter(self, timed: Callable[..., list[int]]) -> None:
        count = timed(3.0)
        model, ticket = model_with(random_mask(0.1, 96, 80), random_mask(0.1, 96, 96))
        made = plan(model, ticket, measure=False)
        wanted = Plan(
            (
                replace(made.layers[0], format="vector", block=(2, 1)),
                replace(made.layers[1], format="csr", block=None),
            ),
            made.machine,
        )
        sparsify_(model, ticket, format=wanted)
        assert [layer.format for layer in model] == ["vector", "csr"]
        assert model[0].packed.vector_rows == 2
        assert not count

    def test_a_sparse_model_carries_its_plan(self) -> None:
        model, ticket = model_with(random_mask(0.1), random_mask(0.5))
        sparsify_(model, ticket, format="element")
        carried: Any = plan(model)
        assert [layer.key for layer in carried.layers] == ["0", "1"]
        assert [layer.nbytes for layer in carried.layers] == [layer.nbytes for layer in model]
        assert all(layer.reason == "requested" for layer in carried.layers)

    def test_sparse_layers_made_by_hand_have_none(self) -> None:
        linear = nn.Linear(8, 8)
        model = nn.Sequential(SparseLinear.from_linear(linear, torch.rand(8, 8) < 0.5))
        assert not plan(model).layers
        assert str(plan(model)).splitlines()[1] == "no layers"
        rich.console.Console(file=io.StringIO()).print(plan(model))

    def test_of_another_model_says_nothing_of_what_was_fused_there(self) -> None:
        transformers = pytest.importorskip("transformers")
        config = transformers.BertConfig(
            hidden_size=24, num_attention_heads=3, intermediate_size=40, num_hidden_layers=1, vocab_size=9
        )
        model = transformers.BertModel(config)
        ticket = prune(model, sparsity=0.7)
        made = plan(sparsify_(copy.deepcopy(model), ticket, format="element"))
        assert made.layers[0].reason == "requested; 3 layers share one input"
        again = plan(sparsify_(copy.deepcopy(model), ticket, format=made))
        assert [layer.reason for layer in again.layers] == [layer.reason for layer in made.layers]
        apart = sparsify_(model, ticket, format=made, fuse_qkv=False, fuse_activation=False)
        assert {layer.reason for layer in plan(apart).layers} == {"requested"}

    @pytest.mark.parametrize(
        ("option", "value"),
        [
            ("tokens", 7),
            ("format", "csr"),
            ("filter", lambda name, linear: True),
            ("trainable", True),
            ("device", "h200"),
            ("compact", False),
        ],
    )
    def test_of_a_sparse_model_takes_no_options(self, option: str, value: Any) -> None:
        model, ticket = model_with(random_mask(0.1, 96, 80))
        sparsify_(model, ticket, format="element")
        with pytest.raises(ValueError, match=f"^{option} does not apply to a sparse model"):
            plan(model, **{option: value})
        with pytest.raises(ValueError, match="unknown format 'vektor'"):
            plan(model, format="vektor")
        assert plan(model, measure=False) == plan(model)

    @pytest.mark.parametrize("tokens", [10**9, 2**70])
    def test_a_dense_layer_for_more_tokens_than_memory_holds_runs(self, tokens: int) -> None:
        """oneDNN fails to lay a weight out for that many."""
        layer = SparseLinear.from_linear(
            nn.Linear(80, 96), random_mask(0.5, 96, 80), format="dense", tokens=tokens
        )
        assert layer(torch.randn(3, 80)).shape == (3, 96)
