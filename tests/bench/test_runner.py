"""The whole benchmark: gate before figures, paired ratios, records that stand on their own."""

import dataclasses
import json

import pytest
import torch

from sparsebert.bench import memory, runner
from sparsebert.bench.environment import detect
from sparsebert.bench.output_check import OutputMismatchError
from sparsebert.bench.providers import BACKENDS, BuiltBackend
from sparsebert.bench.timer import Timings

QUICK = runner.Settings(budget=0.0, min_rounds=3, max_rounds=3, memory=False, retries=2)


@pytest.fixture
def quiet_machine(monkeypatch):
    """No second tries, whatever else runs here meanwhile."""
    monkeypatch.setattr(Timings, "busy", lambda self: ())


def test_records_hold_ours_first_with_ratios_against_the_bars(tiny, quiet_machine):
    rows = runner.run(tiny, ["onednn", "eager"], detect(), QUICK)
    assert [row["provider"] for row in rows] == ["sparse", "onednn", "eager"]
    ours, onednn = rows[:2]
    assert ours["ratio"].keys() == {"onednn", "eager"}
    assert onednn["ratio"]["onednn"]["median"] == 1.0
    assert ours["rounds"] == 3
    assert ours["gate"]["error"] <= ours["gate"]["tolerance"]
    assert ours["ticket"]["sparsity"] == pytest.approx(0.9, abs=1e-4)
    assert ours["ticket"]["masks_sha256"] == tiny.ticket.digest
    assert ours["environment"]["versions"]["torch"] == torch.__version__
    assert json.loads(json.dumps(rows)) == rows


def test_throughput_counts_real_tokens_and_padded_ones_apart(tiny, quiet_machine):
    (ours, _) = runner.run(tiny, ["eager"], detect(), QUICK)
    seconds = 2 * ours["latency_ms"]["median"] / 1e3  # two batches
    assert ours["samples_per_s"] == pytest.approx(4 / seconds)
    assert ours["tokens_per_s"] == pytest.approx((16 + 16 + 9 + 5) / seconds)
    assert ours["padded_tokens_per_s"] == pytest.approx((32 + 18) / seconds)


def test_a_red_gate_gives_no_figures_at_all(tiny, monkeypatch):
    timed = []
    wrong = BuiltBackend(
        run=lambda: timed.append(1) or 1.0, answers=lambda: [2 * a for a in tiny.reference()]
    )
    monkeypatch.setattr(BACKENDS["eager"], "build", lambda self, pruned, consume=False: wrong)
    with pytest.raises(OutputMismatchError, match="eager: error"):
        runner.run(tiny, ["eager"], detect(), QUICK)
    assert not timed


def test_a_baseline_that_fails_is_left_out_with_its_reason_if_the_settings_say_so(
    tiny, monkeypatch, quiet_machine
):
    def refuse(self, pruned, consume=False):
        raise RuntimeError("a library's error\nin two lines")

    wrong = BuiltBackend(run=lambda: 1.0, answers=lambda: [2 * a for a in tiny.reference()])
    monkeypatch.setattr(BACKENDS["bf16"], "build", refuse)
    monkeypatch.setattr(BACKENDS["compact"], "build", lambda self, pruned, consume=False: wrong)
    settings = dataclasses.replace(QUICK, leave_out=True)
    rows = runner.run(
        tiny, ["eager", "bf16", "compact"], detect(), settings, missing={"openvino": "not installed"}
    )
    assert [row["provider"] for row in rows] == ["sparse", "eager"]
    for row in rows:
        assert row["left_out"]["openvino"] == "not installed"
        assert row["left_out"]["bf16"] == "a library's error in two lines"
        assert row["left_out"]["compact"].startswith("compact: error 1.00e+00 > tolerance 1e-04")


def test_ours_is_never_left_out(tiny, monkeypatch):
    wrong = BuiltBackend(run=lambda: 1.0, answers=lambda: [2 * a for a in tiny.reference()])
    monkeypatch.setattr(BACKENDS["sparse"], "build", lambda self, pruned, consume=False: wrong)
    with pytest.raises(OutputMismatchError, match="sparse: error"):
        runner.run(tiny, ["eager"], detect(), dataclasses.replace(QUICK, leave_out=True))


def test_sides_are_closed_even_when_one_cannot_be_built(tiny, monkeypatch):
    closed = []
    side = BuiltBackend(run=lambda: 1.0, answers=list, close=lambda: closed.append("eager"))

    def refuse(self, pruned, consume=False):
        raise ValueError("cannot run this")

    monkeypatch.setattr(BACKENDS["eager"], "build", lambda self, pruned, consume=False: side)
    monkeypatch.setattr(BACKENDS["bf16"], "build", refuse)
    with pytest.raises(ValueError, match="cannot run this"):
        runner.run(tiny, ["eager", "bf16"], detect(), QUICK)
    assert closed == ["eager"]


def test_a_busy_machine_is_tried_again_and_then_marked_in_every_record(tiny, monkeypatch):
    tries = []
    monkeypatch.setattr(Timings, "busy", lambda self: tries.append(1) or ("somebody is compiling",))
    rows = runner.run(tiny, ["eager"], detect(), QUICK)
    assert len(tries) > QUICK.retries
    assert all(row["busy"] and row["busy_reasons"] == ["somebody is compiling"] for row in rows)


def test_memory_is_measured_in_a_process_of_its_own(tiny, tmp_path):
    ticket = tmp_path / "ticket.safetensors"
    tiny.ticket.save(ticket)
    spec = {"workload": vars(tiny.workload), "ticket": str(ticket), "provider": "sparse", "format": "element"}
    held = memory.measure(spec)
    assert 0 < held.baseline < held.running <= held.peak
    assert held.record()["peak_over_baseline"] == held.peak - held.baseline


@pytest.mark.parametrize("budget", [-1.0, float("nan"), float("inf")])
def test_a_budget_that_is_no_number_of_seconds_is_refused(budget):
    with pytest.raises(ValueError, match=f"budget must be a finite number of seconds from 0, got {budget}"):
        runner.Settings(budget=budget)


def test_a_worker_that_fails_says_why(tmp_path):
    spec = {
        "workload": {"model": "bert-tiny", "lengths": [4], "batch": 0},
        "ticket": str(tmp_path / "ticket.safetensors"),
        "provider": "eager",
    }
    with pytest.raises(RuntimeError, match=r"memory worker of eager failed: .*batch must be"):
        memory.measure({**spec, "format": "auto"})
