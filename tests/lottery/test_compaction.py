"""Compaction of the tickets of each method that prunes units: smaller models with the same outputs."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("transformers")
pytest.importorskip("accelerate")

from sparsebert import compact_, compaction_description, sparsify_
from sparsebert.bert import resolve, structure
from sparsebert.lottery.loop import run
from sparsebert.nn.sparse_linear import SparseLinear
from sparsebert.tickets.ticket import Ticket
from sparsebert.training.distillation import Distillation
from tests.lottery.test_head_mlp_search import judged
from tests.lottery.tiny import collate, examples, experiment, model, request, teacher

UNITS = {"granularity": "head+neuron", "scope": "type"}
MLPS = {"granularity": "head+mlp", "scope": "type", "batches": 2}
RUNS: dict[str, tuple[str, float | None, dict[str, Any]]] = {
    "importance": ("importance", 0.5, {**UNITS, "batches": 2}),
    "importance of MLPs": ("importance", 0.5, MLPS),
    "importance-search": ("importance-search", None, {**MLPS, "threshold": 0.6}),
    "early-bird": ("early-bird", 0.5, {**UNITS, "every": 1, "window": 2, "epsilon": 0.9}),
    "super-tickets": ("super-tickets", 0.5, {**MLPS, "step": 0.25}),
    "cap-structured": (
        "cap-structured",
        0.5,
        {
            "granularity": "head+neuron",
            "step": 0.25,
            "batches": 2,
            "distillation": Distillation(),
            "negatives": 12,
        },
    ),
}


@pytest.mark.parametrize("name", RUNS)
def test_the_ticket_of_every_method_that_prunes_units(name: str, tmp_path: Path) -> None:
    method, sparsity, options = RUNS[name]
    started = judged() if method == "importance-search" else experiment()
    if "distillation" in options:
        started = replace(started, teacher=teacher())
    run(started, request(method, sparsity, **options), tmp_path)
    ticket = Ticket.load(tmp_path / "ticket.safetensors")
    trained: Any = type(model()).from_pretrained(tmp_path / "model").eval()
    ids = collate(examples(seed=2))["input_ids"]
    with torch.no_grad():
        expected = trained(ids).logits
        small = compact_(copy.deepcopy(trained), ticket)
        torch.testing.assert_close(small(ids).logits, expected, atol=1e-5, rtol=1e-5)
        both = sparsify_(copy.deepcopy(trained), ticket, format="element")
        torch.testing.assert_close(both(ids).logits, expected, atol=1e-5, rtol=1e-5)

    bert, remaining = structure(trained), 0
    for query, _, _, output in bert.heads:
        heads = int(ticket.masks[query].view(bert.num_heads, -1).any(1).sum())
        assert resolve(small, query).out_features == max(1, heads * bert.head_size)
        remaining += 4 * bert.head_size * bert.num_heads * resolve(small, output).in_features
    for up, down in bert.neurons:
        neurons = int((ticket.masks[up].any(1) & ticket.masks[down].any(0)).sum())
        assert resolve(small, up).out_features == max(1, neurons)
        remaining += 2 * bert.head_size * bert.num_heads * resolve(small, down).in_features
    weights = compaction_description(small)["weights"]
    assert weights["stored"] <= remaining < weights["configured"]
    assert all(layer.mask.shape[0] <= 30 for layer in both.modules() if isinstance(layer, SparseLinear))
