"""Super tickets as a run: scored once, trained along a grid, the best one kept; and resumed."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

pytest.importorskip("transformers")
pytest.importorskip("accelerate")

from sparsebert import results
from sparsebert.bert import structure
from sparsebert.lottery.experiment import Experiment
from sparsebert.lottery.loop import run
from sparsebert.lottery.method import lottery_method
from sparsebert.pruning.gates import gate_sites
from sparsebert.pruning.methods.head_importance import gate_importance
from sparsebert.tickets.ticket import Ticket
from tests.lottery.killing import Killed
from tests.lottery.tiny import experiment, request

CHOICES: dict[str, Any] = {"granularity": "head+mlp", "scope": "type", "batches": 2, "step": 0.25}
# Of the dense model and of the tickets of 25, 50 and 75 %: the second ticket is the best.
METRICS = (0.95, 0.6, 0.9, 0.7)


def scripted(metrics: tuple[float, ...] = METRICS, done: int = 0) -> Experiment:
    values = iter(metrics[done:])

    def evaluate(trained: nn.Module) -> dict[str, float]:
        return {"loss": 0.0, "accuracy": next(values)}

    return replace(experiment(), evaluate=evaluate, metric="accuracy")


def test_the_best_of_the_grid_is_the_run_s(tmp_path: Path) -> None:
    rows = run(scripted(), request("super-tickets", 0.75, **CHOICES), tmp_path)
    assert [row["source"] for row in rows] == ["all", "found", "found", "found"]
    (whole,) = results.read(tmp_path / "log.jsonl", "run")
    assert (whole["round"], whole["sparsity"], whole["metrics"]["accuracy"]) == (2, rows[2]["sparsity"], 0.9)
    chosen = Ticket.load(tmp_path / "ticket.safetensors")
    assert chosen == Ticket.load(tmp_path / "round-02" / "ticket.safetensors")
    weights = load_file(tmp_path / "model" / "model.safetensors")
    for key, mask in chosen.masks.items():
        assert not weights[f"bert.{key}.weight"][~mask].any()
    sparser = Ticket.load(tmp_path / "round-03" / "ticket.safetensors")
    assert any(weights[f"bert.{key}.weight"][~mask].any() for key, mask in sparser.masks.items())
    assert not list(tmp_path.glob("round-*/trained.safetensors"))


def test_all_tickets_come_from_the_dense_model_s_scores(tmp_path: Path) -> None:
    run(scripted(), request("super-tickets", 0.75, **CHOICES), tmp_path)
    tickets = [Ticket.load(tmp_path / f"round-0{number}" / "ticket.safetensors") for number in (1, 2, 3)]
    for denser, sparser in pairwise(tickets):
        assert sparser & denser == sparser
    assert {ticket.metadata["method"] for ticket in tickets} == {"head-importance"}
    for ticket in tickets[:2]:  # the third has room for one head
        assert all(ticket.masks[f"encoder.layer.{i}.attention.self.query"].any() for i in range(2))
    assert len({ticket.metadata["model"]["weights"] for ticket in tickets}) == 1


def test_of_equal_ones_the_sparsest_and_never_the_dense_model(tmp_path: Path) -> None:
    run(scripted((1.0, 0.5, 0.5, 0.5)), request("super-tickets", 0.75, **CHOICES), tmp_path)
    (whole,) = results.read(tmp_path / "log.jsonl", "run")
    assert whole["round"] == 3


@pytest.mark.parametrize("where", [1, 2, 3])
def test_killed_before_a_round_s_record_it_chooses_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: int
) -> None:
    config = request("super-tickets", 0.75, **CHOICES)
    run(scripted(), config, tmp_path / "whole")
    from sparsebert.lottery import loop

    calls, original = iter(range(where, -1, -1)), loop._counts

    def killed(*arguments: Any) -> Any:
        if next(calls) == 0:
            raise Killed
        return original(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "_counts", killed)
        with pytest.raises(Killed):
            run(scripted(), config, tmp_path / "parts")
    run(scripted(done=where), config, tmp_path / "parts")
    whole, parts = (
        [out / "ticket.safetensors", out / "model" / "model.safetensors"]
        for out in (tmp_path / "whole", tmp_path / "parts")
    )
    assert whole[0].read_bytes() == parts[0].read_bytes()
    one, other = load_file(whole[1]), load_file(parts[1])
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_refusals() -> None:
    with pytest.raises(ValueError, match=r"super-tickets must be head\+mlp"):
        request("super-tickets", 0.5)
    with pytest.raises(ValueError, match="between 0 and 1"):
        request("super-tickets", 0.5, **{**CHOICES, "step": 1.5})
    with pytest.raises(ValueError, match="batches must be at least 1"):
        request("super-tickets", 0.5, **{**CHOICES, "batches": 0})


def test_a_share_of_the_heads_and_the_same_of_the_mlps_by_each_token_s_importance(tmp_path: Path) -> None:
    """In their grid 10 % of the heads go with 10 % of the MLPs, and each token counts by itself."""
    method = lottery_method("super-tickets", step=0.5, batches=2)
    assert method.scope == "type"
    config = request("super-tickets", 0.5, **{**CHOICES, "scope": method.scope, "step": 0.5})
    trained = experiment()
    (tmp_path / "round-00").mkdir()
    ticket = method.find_ticket(
        trained, config, tmp_path / "round-00", config.method.rounds(config.target)[1]
    )
    found = structure(trained.model)
    heads = sum(int(ticket.masks[keys[0]].view(2, -1).all(1).sum()) for keys in found.heads)
    mlps = sum(int(ticket.masks[keys[0]].all()) for keys in found.neurons)
    assert (heads, mlps) == (2, 1)
    batches = trained.first_batches(2, 8, 0)
    sites = gate_sites(found, "head") | gate_sites(found, "mlp")
    expected = gate_importance(trained.model, sites, batches, per_token=True)
    stored = load_file(tmp_path / "round-00" / "importance.safetensors")
    assert all(torch.equal(stored[name], each) for name, each in expected.items())
