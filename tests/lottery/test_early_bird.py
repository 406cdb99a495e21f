"""Early-Bird as a run: it stops early, says what that saved, and goes on where it was killed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

pytest.importorskip("transformers")
pytest.importorskip("accelerate")

from sparsebert import results
from sparsebert.lottery.loop import run
from sparsebert.lottery.method import lottery_method
from sparsebert.tickets.ticket import Ticket
from sparsebert.training.trainer import TicketTrainer
from tests.lottery.killing import Killed, dying
from tests.lottery.tiny import collate, experiment, request

UNITS: dict[str, Any] = {"granularity": "head+neuron", "scope": "type"}
EARLY: dict[str, Any] = {**UNITS, "steps": 12, "every": 1, "window": 3, "epsilon": 0.5}


def search(out: Path) -> dict[str, Any]:
    return Ticket.load(out / "ticket.safetensors").metadata["search"]


def test_it_draws_when_the_mask_has_settled(tmp_path: Path) -> None:
    rows = run(experiment(), request("early-bird", 0.5, **EARLY), tmp_path)
    found = search(tmp_path)
    distances = [distance for _, distance in found["distances"]]
    assert found["settled"]
    assert max(distances[-3:]) < 0.5
    assert found["drawn_at"] == len(distances) + 1 < 12
    assert found["saved"] == 1 - found["drawn_at"] / 12
    assert [row["steps"] for row in rows] == [found["drawn_at"], 12]
    assert rows[1]["search"] == found
    assert (found["epsilon"], found["window"], found["steps_per_epoch"]) == (0.5, 3, 5)
    assert [row["sparsity"] for row in rows] == [0, 0.5]
    files = sorted((tmp_path / "round-00" / "coefficients").glob("*.npy"))
    assert len(files) == found["drawn_at"]
    assert np.load(files[0]).shape == (2 * 2 + 2 * 30,)


def test_the_units_of_the_highest_coefficients_stay(tmp_path: Path) -> None:
    run(experiment(), request("early-bird", 0.5, **EARLY), tmp_path)
    ticket = Ticket.load(tmp_path / "ticket.safetensors")
    last = sorted((tmp_path / "round-00" / "coefficients").glob("*.npy"))[-1]
    neurons = np.load(last)[4:]
    kept = torch.cat([ticket.masks[f"encoder.layer.{i}.intermediate.dense"].all(1) for i in range(2)]).numpy()
    assert kept.sum() == 30
    assert neurons[kept].min() >= neurons[~kept].max()


def test_heads_may_rank_within_their_layer(tmp_path: Path) -> None:
    run(experiment(), request("early-bird", 0.5, **{**EARLY, "scope": "heads-by-layer"}), tmp_path)
    ticket = Ticket.load(tmp_path / "ticket.safetensors")
    for layer in range(2):
        heads = ticket.masks[f"encoder.layer.{layer}.attention.self.query"].view(2, -1)
        assert heads.all(1).sum() == heads.any(1).sum() == 1
    assert ticket.metadata["scope"] == "heads-by-layer"


def test_heads_and_neurons_may_have_shares_of_their_own(tmp_path: Path) -> None:
    shares = {"heads_sparsity": 0.5, "neurons_sparsity": 0.4}
    config = request("early-bird", None, **{**EARLY, "scope": "heads-by-layer"}, **shares)
    rows = run(experiment(), config, tmp_path)
    ticket = Ticket.load(tmp_path / "ticket.safetensors")
    for layer in range(2):
        heads = ticket.masks[f"encoder.layer.{layer}.attention.self.query"].view(2, -1)
        assert heads.all(1).sum() == heads.any(1).sum() == 1
    neurons = torch.cat([ticket.masks[f"encoder.layer.{i}.intermediate.dense"].all(1) for i in range(2)])
    assert neurons.sum() == 36
    assert rows[1]["sparsity"] == ticket.sparsity == pytest.approx((0.5 * 3200 + 0.4 * 2400) / 5600)


def test_the_search_may_have_a_learning_rate_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rates: list[float] = []
    create = TicketTrainer.create_optimizer

    def spy(self: Any, model: Any = None) -> Any:
        rates.append(self.args.learning_rate)
        return create(self, model)

    monkeypatch.setattr(TicketTrainer, "create_optimizer", spy)
    config = request("early-bird", 0.5, **EARLY, learning_rate=4e-3, search_learning_rate=2e-3)
    run(experiment(), config, tmp_path)
    assert rates == [2e-3, 4e-3]


@pytest.mark.parametrize("rewind", [{"rewind": "step", "rewind_step": 2}, {"rewind": "none", "head": "keep"}])
def test_nothing_goes_on_with_the_optimizer_of_the_search(rewind: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="rewind must be 'pretrained' or 'learning-rate', got '"):
        request("early-bird", 0.5, **EARLY, **rewind)


def test_by_default_it_draws_as_published() -> None:
    method = lottery_method("early-bird")
    assert (method.granularity, method.scope, method.penalty) == ("head+neuron", "heads-by-layer", 1e-4)


def test_a_fixed_draw_is_a_share_of_the_first_epoch(tmp_path: Path) -> None:
    rows = run(experiment(), request("early-bird", 0.5, **UNITS, draw="fixed", draw_at=0.6), tmp_path)
    assert [row["steps"] for row in rows] == [3, 7]  # 40 examples are 5 batches
    found = search(tmp_path)
    assert found["drawn_at"] == 3
    assert "epsilon" not in found
    assert found["distances"] == []


def test_what_never_settles_is_drawn_at_the_end(tmp_path: Path) -> None:
    config = request("early-bird", 0.5, **UNITS, every=3, epsilon=1e-9)
    rows = run(experiment(), config, tmp_path)
    found = search(tmp_path)
    assert [row["steps"] for row in rows] == [7, 7]
    assert (found["settled"], found["drawn_at"]) == (False, 6)


@pytest.mark.parametrize("draw", ["distance", "fixed"])
def test_killed_anywhere_it_draws_the_same_ticket(tmp_path: Path, draw: str) -> None:
    """Before and after the draw; a checkpoint may lie at its very step."""
    config = request("early-bird", 0.5, **EARLY, draw=draw, draw_at=1.0, save_steps=1)
    run(experiment(), config, tmp_path / "whole")
    sessions = 0
    for batch in (4, 3, 2, 5, 3, 7, 4, None):
        sessions += 1
        try:
            run(replace(experiment(), collate=dying(collate, batch)), config, tmp_path / "parts")
        except Killed:
            continue
        break
    assert sessions > 3
    assert_same(tmp_path)


def test_killed_between_the_last_step_and_its_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = request("early-bird", 0.5, **EARLY, save_steps=1)
    run(experiment(), config, tmp_path / "whole")

    def killed(*arguments: Any) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr("sparsebert.lottery.loop.ticket_fields", killed)
        with pytest.raises(Killed):
            run(experiment(), config, tmp_path / "parts")
    run(experiment(), config, tmp_path / "parts")
    assert_same(tmp_path)


def assert_same(folder: Path) -> None:
    whole, parts = folder / "whole", folder / "parts"
    assert (whole / "ticket.safetensors").read_bytes() == (parts / "ticket.safetensors").read_bytes()
    logs = [results.read(out / "log.jsonl", "round") for out in (whole, parts)]
    for name in ("metrics", "steps", "search", "loss"):
        assert [row[name] for row in logs[0]] == [row[name] for row in logs[1]]
    models = [load_file(out / "model" / "model.safetensors") for out in (whole, parts)]
    assert models[0].keys() == models[1].keys()
    assert all(torch.equal(each, models[1][name]) for name, each in models[0].items())
    assert not any("coefficients" in name for name in models[0])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"granularity": "element"}, "must be head, neuron or head.neuron"),
        ({"granularity": "head+mlp"}, "must be head, neuron or head.neuron"),
        ({"penalty": -1.0}, "penalty must be at least 0"),
        ({"penalty": float("inf")}, "penalty must be at least 0, got inf"),
        ({"heads_sparsity": 0.5}, "heads_sparsity and neurons_sparsity go together"),
        ({"heads_sparsity": 0.5, "neurons_sparsity": 1.0}, r"neurons_sparsity must be in \[0, 1\), got 1.0"),
        ({"heads_sparsity": 0.5, "neurons_sparsity": 0.4}, "decides the sparsity"),
        ({"draw_at": 0.0}, "draw_at must be a share of an epoch"),
        ({"every": 0}, "every must be at least 1, got 0"),
        ({"epsilon": 2.0}, "epsilon must be in"),
        ({"draw": "fixd"}, "did you mean 'fixed'"),
    ],
)
def test_refusals(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        request("early-bird", 0.5, **{**UNITS, **options})


def test_a_round_too_short_for_a_mask_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="a round of 7 steps ends before the first mask, at step 50"):
        run(experiment(), request("early-bird", 0.5, **UNITS, every=50), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_shares_of_their_own_need_heads_and_neurons_apart() -> None:
    shares = {"heads_sparsity": 0.5, "neurons_sparsity": 0.4}
    for units in ({"granularity": "head", "scope": "type"}, {**UNITS, "scope": "global"}):
        with pytest.raises(ValueError, match="a scope that keeps heads and neurons apart, such as 'type'"):
            request("early-bird", None, **units, **shares)
