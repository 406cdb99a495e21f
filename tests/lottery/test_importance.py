"""Importance as a run: dense, scored on training data, rewound; resumed, and refused where it cannot be."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("transformers")
pytest.importorskip("accelerate")

from dataclasses import replace

from sparsebert import results
from sparsebert.bert import resolve, structure
from sparsebert.lottery.loop import run
from sparsebert.tickets.ticket import Ticket
from tests.lottery.killing import Killed, dying
from tests.lottery.tiny import collate, experiment, model, request

CHOICES: dict[str, dict[str, Any]] = {"granularity": "head+neuron", "scope": "type", "batches": 2}


@pytest.mark.parametrize("granularity", ["head", "neuron", "head+neuron"])
def test_dense_first_and_then_its_important_units(tmp_path: Path, granularity: str) -> None:
    rows = run(experiment(), request("importance", 0.5, **CHOICES | {"granularity": granularity}), tmp_path)
    assert [row["sparsity"] for row in rows] == [0, 0.5]
    assert [row["source"] for row in rows] == ["all", "trained"]
    ticket = Ticket.load(tmp_path / "ticket.safetensors")
    assert ticket.metadata["method"] == "head-importance"
    assert ticket.metadata["granularity"] == granularity


def test_a_removed_mlp_stays_removed_while_it_trains(tmp_path: Path) -> None:
    rows = run(experiment(), request("importance", 0.5, granularity="mlp", batches=2), tmp_path)
    assert rows[-1]["sparsity"] == 0.5
    ticket = Ticket.load(tmp_path / "ticket.safetensors")
    assert len(ticket.removed) == 2
    trained = type(model()).from_pretrained(tmp_path / "model")
    for key in ticket.removed:
        assert not resolve(trained, key).weight.any()
        assert not resolve(trained, key).bias.any()
    kept = [keys for keys in structure(trained).neurons if keys[0] not in ticket.removed]
    assert all(resolve(trained, key).bias.any() for keys in kept for key in keys)


def test_published_gradients_choose_otherwise(tmp_path: Path) -> None:
    for name, accumulate in (("fresh", False), ("published", True)):
        config = request("importance", 0.5, **CHOICES, accumulate=accumulate)
        run(experiment(), config, tmp_path / name)
    fresh, published = (
        Ticket.load(tmp_path / name / "ticket.safetensors") for name in ("fresh", "published")
    )
    assert fresh != published


def test_killed_in_either_round_it_ends_with_the_same_ticket(tmp_path: Path) -> None:
    config = request("importance", 0.5, **CHOICES)
    run(experiment(), config, tmp_path / "whole")
    for batch in (6, 7, None):
        try:
            run(replace(experiment(), collate=dying(collate, batch)), config, tmp_path / "parts")
        except Killed:
            assert batch
    tickets = [Ticket.load(tmp_path / name / "ticket.safetensors") for name in ("whole", "parts")]
    assert tickets[0] == tickets[1]
    logs = [results.read(tmp_path / name / "log.jsonl", "round") for name in ("whole", "parts")]
    assert [row["metrics"] for row in logs[0]] == [row["metrics"] for row in logs[1]]
    assert sum(row["sessions"] for row in logs[1]) > 2


def test_single_weights_have_no_gates() -> None:
    with pytest.raises(
        ValueError, match=r"must be head, neuron, mlp, head\+neuron or head\+mlp, got 'element'"
    ):
        request("importance", 0.5)


def test_no_batch_is_no_choice() -> None:
    with pytest.raises(ValueError, match="batches must be at least 1"):
        request("importance", 0.5, batches=0)
