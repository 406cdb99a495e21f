"""The plan as a table, as JSON and as what a sparse model carries."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import rich.console
import torch
from torch import nn

from sparsebert import SparseLinear, plan, sparsify_
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
