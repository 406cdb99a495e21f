"""The sparsity that reaches a speed, on a machine whose times are made up."""

from __future__ import annotations

import pytest
import torch

from sparsebert.bench.runner import Settings
from sparsebert.workflows import speed_target
from sparsebert.workflows.speed_target import MOST_SPARSITY, SpeedGoal, sparsity_for

transformers = pytest.importorskip("transformers")

DENSE = 40.0


@pytest.fixture
def base():
    config = transformers.BertConfig(
        hidden_size=64, num_hidden_layers=1, num_attention_heads=2, intermediate_size=96, vocab_size=50
    )
    return transformers.BertModel(config, add_pooling_layer=False).eval()


@pytest.fixture
def batch():
    return {"input_ids": torch.randint(50, (2, 9)), "attention_mask": torch.ones(2, 9, dtype=torch.int64)}


@pytest.fixture
def machine(monkeypatch):
    """A machine on which sparse time is 4 ms and 50 ms for each unit of density."""
    timed = []

    def time_against_dense(base, ticket, batches, goal, settings):
        timed.append(ticket.sparsity)
        return 4 + 50 * ticket.density, DENSE, "dense, fused"

    monkeypatch.setattr(speed_target, "time_against_dense", time_against_dense)
    return timed


@pytest.mark.parametrize("speedup", [1.0, 2.0, 4.0, 6.0])
def test_a_speedup_is_reached_with_the_lowest_sparsity(base, batch, machine, speedup):
    target = sparsity_for(base, [batch], SpeedGoal(speedup=speedup))
    assert target.speedup == pytest.approx(speedup, rel=0.02)
    assert target.sparsity == pytest.approx(1 - (DENSE / speedup - 4) / 50, abs=0.02)
    assert len(machine) <= 6


def test_milliseconds_are_reached(base, batch, machine):
    assert sparsity_for(base, [batch], SpeedGoal(milliseconds=14.0)).milliseconds == pytest.approx(
        14, rel=0.02
    )


def test_a_speed_that_no_sparsity_reaches_is_refused_with_what_is_possible(base, batch, machine):
    with pytest.raises(
        ValueError, match=r"no sparsity up to 99% reaches 20x here: 99% takes 4.5.* ms"
    ) as error:
        sparsity_for(base, [batch], SpeedGoal(speedup=20.0))
    assert "\n" not in str(error.value)
    assert max(machine) == pytest.approx(MOST_SPARSITY, abs=0.001)


def test_a_real_machine_answers(base, batch):
    target = sparsity_for(
        base, [batch], SpeedGoal(milliseconds=1000.0), settings=Settings(budget=0.01, memory=False, retries=0)
    )
    assert target.sparsity == 0
    assert target.dense_form in ("dense", "dense, fused")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "exactly one of speedup and milliseconds"),
        ({"speedup": 2.0, "milliseconds": 3.0}, "exactly one of speedup and milliseconds"),
        ({"speedup": -1.0}, "speedup must be a positive number, got -1.0"),
        ({"milliseconds": float("nan")}, "milliseconds must be a positive number, got nan"),
    ],
    ids=str,
)
def test_a_goal_is_one_positive_speed(options, message):
    with pytest.raises(ValueError, match=message):
        SpeedGoal(**options)
