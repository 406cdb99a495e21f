"""The search for heads and MLPs as a run, and its ticket against bad and random ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("transformers")
pytest.importorskip("accelerate")

from sparsebert.lottery.loop import run
from sparsebert.pruning.head_mlp_masks import UnitMasks
from sparsebert.tickets.ticket import Ticket
from tests.lottery.tiny import experiment, judged, model, request

CHOICES: dict[str, Any] = {"granularity": "head+mlp", "batches": 2, "threshold": 0.7}


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("good")
    run(judged(), request("importance-search", None, **CHOICES), out)
    return out


def test_it_finds_its_sparsity_and_keeps_its_steps(good: Path) -> None:
    ticket = Ticket.load(good / "ticket.safetensors")
    steps = ticket.metadata["search"]
    assert steps[0]["heads"] == 4
    assert steps[0]["mlps"] == 2
    masks = UnitMasks.of(ticket, model())
    kept = {"heads": int(masks.heads.sum()), "mlps": int(masks.mlps.sum())}
    (found,) = {step["metric"] for step in steps if kept.items() <= step.items()}
    assert found >= 0.7 * steps[0]["metric"]
    assert 0 < ticket.sparsity < 1


@pytest.mark.parametrize(("judged_on", "examples"), [("train", 16), ("validation", None)])
def test_the_examples_that_decide(tmp_path: Path, judged_on: str, examples: int | None) -> None:
    seen: list[int | None] = []
    run(judged(seen), request("importance-search", None, **CHOICES, judged_on=judged_on), tmp_path)
    assert set(seen) == {examples}


@pytest.mark.parametrize("method", ["ticket", "bad-units", "random-units"])
def test_good_bad_and_random_are_trained_alike(tmp_path: Path, good: Path, method: str) -> None:
    ticket = Ticket.load(good / "ticket.safetensors")
    (row,) = run(experiment(), request(method, None, ticket=ticket), tmp_path)
    assert row["sparsity"] == ticket.sparsity
    mine = Ticket.load(tmp_path / "ticket.safetensors")
    assert (mine == ticket) == (method == "ticket")
    assert len(mine.removed) == len(ticket.removed)


def test_refusals(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="decides the sparsity"):
        request("importance-search", 0.5, **CHOICES)
    with pytest.raises(ValueError, match="share_of_heads must be between 0 and 1"):
        request("importance-search", None, **CHOICES, share_of_heads=1.5)
    with pytest.raises(ValueError, match=r"importance-search must be head\+mlp"):
        request("importance-search", None)
    with pytest.raises(ValueError, match="needs an experiment with a judge"):
        run(experiment(), request("importance-search", None, **CHOICES), tmp_path / "run")
    with pytest.raises(ValueError, match="did you mean 'global'"):
        run(judged(), request("importance-search", None, **CHOICES, scope="globl"), tmp_path / "run")
    assert not (tmp_path / "run").exists()
