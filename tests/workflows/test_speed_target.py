"""What reaches a speed: predicted, and corrected by timings on machines whose times are made up."""

from __future__ import annotations

import pytest
import torch

from sparsebert import Ticket
from sparsebert.bench.runner import Settings
from sparsebert.one_shot import SparseGPT
from sparsebert.workflows import speed_target
from sparsebert.workflows.method_programme import programme_for
from sparsebert.workflows.speed_programmes import Proposal
from sparsebert.workflows.speed_target import CLOSE, CORRECTIONS, SpeedGoal, SpeedTarget, target_for

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


class Linear:
    """A programme that predicts ``rest`` and ``slope`` milliseconds for each unit of density, by way."""

    def __init__(self, ways=None):
        self.ways = ways or {"layers": (2.0, 30.0)}
        self.dense = min(sum(way) for way in self.ways.values())

    def within(self, limit_of):
        densities = {
            way: (limit_of(way).milliseconds - rest) / slope / limit_of(way).slowdown
            for way, (rest, slope) in self.ways.items()
        }
        way = max(densities, key=densities.get)
        rest, slope = self.ways[way]
        kept = min(max(round(100_000 * densities[way]), 1_000), 100_000)
        ticket = Ticket({"a": (torch.arange(100_000) < kept)[None]})
        share = kept / 100_000
        return Proposal(way, slope * share, rest, ticket, {"a": share}, {}, 1 - share, densities[way] >= 0.01)


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
def test_a_speedup_is_reached_with_the_most_weights(base, batch, machine, speedup):
    target = target_for(base, Linear(), [batch], SpeedGoal(speedup=speedup))
    assert target.speedup == pytest.approx(speedup, rel=0.02)
    assert target.sparsity == pytest.approx(1 - (DENSE / speedup - 4) / 50, abs=0.02)
    assert len(machine) <= 1 + CORRECTIONS


def test_a_prediction_that_is_right_needs_one_timing(base, batch, machine):
    programme = Linear({"layers": (4.0, 50.0)})
    programme.dense = DENSE
    target = target_for(base, programme, [batch], SpeedGoal(speedup=2.0))
    assert len(machine) == 1
    assert target.modelled_milliseconds == pytest.approx(target.milliseconds)
    assert target.densities == {"a": pytest.approx(0.32)}


def test_a_way_that_was_predicted_too_fast_is_left(base, batch, monkeypatch):
    """The fp32 engine of this machine is slower than its prediction, the layers one by one are not."""
    ways = {"layers": (4.0, 50.0), "fp32": (2.0, 40.0)}

    def time_against_dense(base, ticket, batches, goal, settings):
        return 4 + 50 * ticket.density, DENSE, "dense"

    monkeypatch.setattr(speed_target, "time_against_dense", time_against_dense)
    target = target_for(base, Linear(ways), [batch], SpeedGoal(milliseconds=20.0))
    assert target.milliseconds == pytest.approx(20, rel=CLOSE)


def test_a_target_says_what_its_matrices_are():
    densities, granularities = {"a": 1.0, "b": 0.3, "c": 0.5}, {"a": "element", "b": "4x1", "c": "4x1"}
    kept = {"densities": densities, "granularities": granularities}
    assert SpeedTarget(0.5, 1.0, 2.0, "dense", **kept).composition == "2 4x1, 1 dense"
    assert SpeedTarget(0.5, 1.0, 2.0, "dense", densities=densities).composition == "1 dense, 2 pruned"
    assert SpeedTarget(0.5, 1.0, 2.0, "dense").composition == ""


def test_milliseconds_are_reached(base, batch, machine):
    target = target_for(base, Linear(), [batch], SpeedGoal(milliseconds=14.0))
    assert target.milliseconds == pytest.approx(14, rel=0.02)


def test_a_speed_that_nothing_reaches_is_refused_with_what_is_possible(base, batch, machine):
    with pytest.raises(
        ValueError, match=r"no sparsity up to 99% reaches 20x here: 99%, the fastest, takes 4.5.* ms, 8.89x"
    ) as error:
        target_for(base, Linear(), [batch], SpeedGoal(speedup=20.0))
    assert "\n" not in str(error.value)
    assert len(machine) == 1


def test_a_gpu_is_predicted_and_nothing_is_timed(base, batch, machine):
    target = target_for(base, Linear(), [batch], SpeedGoal(speedup=2.0, device="h100"))
    assert not machine
    assert target.speedup == pytest.approx(2, rel=1e-3)
    assert target.dense_form == "dense on NVIDIA H100"
    with pytest.raises(
        ValueError, match=r"reaches 20x on h100: 99%, the fastest, is predicted to take 2.3 ms"
    ):
        target_for(base, Linear(), [batch], SpeedGoal(speedup=20.0, device="h100"))


def test_a_real_machine_answers(base, batch):
    programme = programme_for(base, SparseGPT(), [batch] * 2, [batch])
    settings = Settings(budget=0.01, memory=False, retries=0)
    target = target_for(base, programme, [batch], SpeedGoal(milliseconds=1000.0), settings=settings)
    assert target.sparsity == 0
    assert target.dense_form in ("dense", "dense, fused")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "exactly one of speedup and milliseconds"),
        ({"speedup": 2.0, "milliseconds": 3.0}, "exactly one of speedup and milliseconds"),
        ({"speedup": -1.0}, "speedup must be a positive number, got -1.0"),
        ({"milliseconds": float("nan")}, "milliseconds must be a positive number, got nan"),
        ({"speedup": 2.0, "device": "z80"}, "no figures for device 'z80'; known: h200, h100, a100"),
    ],
    ids=str,
)
def test_a_goal_is_one_positive_speed(options, message):
    with pytest.raises(ValueError, match=message):
        SpeedGoal(**options)
