"""The figures of the CPU engine: judged where the CPU is at hand, and said to be missing where it is not."""

from __future__ import annotations

import dataclasses
import types
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from benchmarks import cpu_engine
from benchmarks.cpu_engine import ROWS, Limit, Measured, Outcome, Row, judged, models, no_amx
from sparsebert import results
from sparsebert.bench.environment import detect
from sparsebert.report.layer_tables import goal_tables
from sparsebert_kernels.cpu import fp16


@pytest.fixture(scope="module")
def zen() -> Any:
    return dataclasses.replace(detect(), cpu="EPYC", instruction_sets=("avx512", "avx2", "baseline"), cores=2)


@pytest.fixture(scope="module")
def xeon(zen: Any) -> Any:
    sets = ("amx", "avx512", "avx2", "baseline")
    return dataclasses.replace(
        zen, cpu="Xeon", instruction_sets=sets, isa_flags=(*zen.isa_flags, "avx512_fp16")
    )


ROW = Row("one", lambda machine, budget, keep: Outcome(), ((Limit("figure of AMX", 4, 7), no_amx),))


def test_a_figure_of_another_cpu_is_recorded_as_not_measured_with_the_reason(zen: Any) -> None:
    (row,) = judged(ROW, zen, Outcome(figures={"figure of AMX": Measured(9, busy=False)}))
    assert (row["value"], row["passed"], row["reason"]) == (None, None, "no AMX")
    (table,) = goal_tables([row])
    assert table.rows[0] == ("figure of AMX", "not measured on this CPU (no AMX)", "4 x", "7 x", "-")


def test_a_figure_that_was_measured_is_judged(xeon: Any) -> None:
    (row,) = judged(ROW, xeon, Outcome(figures={"figure of AMX": Measured(3.9, busy=True)}))
    assert (row["value"], row["passed"], row["busy"]) == (3.9, False, True)


def test_a_figure_that_failed_is_not_silently_dropped(xeon: Any) -> None:
    (row,) = judged(ROW, xeon, Outcome())
    assert (row["value"], row["reason"]) == (None, "its measurement failed")


def test_every_limit_can_be_measured_on_some_machine_and_has_one_name(zen: Any, xeon: Any) -> None:
    names = [limit.figure for row in ROWS for limit, _ in row.limits]
    assert len(names) == len(set(names))
    for row in ROWS:
        for _, why_not in row.limits:
            if why_not is not cpu_engine.no_deepsparse:
                assert None in (row.why_not(zen) or why_not(zen), row.why_not(xeon) or why_not(xeon))


def test_the_first_case_meets_every_baseline_and_the_others_the_fast_ones(
    zen: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    seconds = {
        "sparse": 1.0,
        "onednn": 4.0,
        "eager": 6.0,
        "onednn-bf16": 2.0,
        "openvino-int8": 2.5,
        "compact": 1.0,
    }
    met: list[list[str]] = []

    def run(pruned: Any, baselines: list[str], *args: Any, **options: Any) -> list[dict[str, Any]]:
        met.append(list(baselines))
        return [
            {
                "provider": name,
                "precision": "int8" if "int8" in name else "bfloat16" if "bf16" in name else "float32",
                "latency_ms": {"median": seconds[name]},
                "ratio": {base: {"median": seconds[base] / seconds[name]} for base in baselines},
                "busy": False,
            }
            for name in ("sparse", *baselines)
        ]

    monkeypatch.setattr(cpu_engine.runner, "run", run)
    monkeypatch.setattr(cpu_engine, "_subject", lambda *args, **options: None)
    monkeypatch.setattr(cpu_engine, "BASELINES", [name for name in seconds if name != "sparse"])
    here = types.SimpleNamespace(available=lambda: None)
    monkeypatch.setattr(cpu_engine, "BACKENDS", dict.fromkeys(seconds, lambda: here))
    kept: list[int] = []
    outcome = models(8, zen, 1.0, lambda rows: kept.append(len(rows)))
    assert kept[:2] == [6, 4]
    assert met[0] == ["onednn", "eager", "onednn-bf16", "openvino-int8", "compact"]
    assert met[1] == ["onednn", "onednn-bf16", "openvino-int8"]
    name = cpu_engine.case_name("element", 0.9, "fp32", 8, "the fastest dense")
    assert outcome.figures[name].value == 2.0
    assert not outcome.failures


def test_a_case_that_fails_leaves_the_others(zen: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any, **options: Any) -> Any:
        raise ValueError("no such granularity")

    monkeypatch.setattr(cpu_engine, "_subject", refuse)
    outcome = models(1, zen, 1.0, lambda rows: None)
    assert len(outcome.failures) == len(cpu_engine.CASES)
    assert outcome.failures[0] == "batch 1, element 90%: no such granularity"


def test_a_killed_run_keeps_the_comparisons_that_have_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def measure(machine: Any, budget: float, keep: cpu_engine.Keep) -> Outcome:
        keep([results.stamp("bench", {"provider": "sparse"})])
        raise KeyboardInterrupt

    row = dataclasses.replace(ROW, measure=measure)
    monkeypatch.setattr(cpu_engine, "ROWS", (row,))
    out = tmp_path / "cpu.jsonl"
    with pytest.raises(KeyboardInterrupt):
        cpu_engine.main(["--in-process", row.name, "--out", str(out)])
    assert [record["kind"] for record in results.read(out)] == ["bench"]


def test_a_row_whose_process_died_keeps_its_records_and_says_so_of_its_limits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def die(module: str, arguments: Sequence[str], out: Path, variables: Any = None) -> str:
        results.append(out, [results.stamp("layer_summary", {})])
        return "exit code -9"

    limit = Limit("figure of every CPU", 4, 7)
    row = dataclasses.replace(ROW, limits=((limit, cpu_engine.never),))
    monkeypatch.setattr(cpu_engine, "ROWS", (row,))
    monkeypatch.setattr(cpu_engine, "run_apart", die)
    out = tmp_path / "cpu.jsonl"
    results.append(out, [results.stamp("bench", {})])  # of another machine
    assert cpu_engine.main(["--row", row.name, "--out", str(out)]) == 1
    records = results.read(out)
    assert [record["kind"] for record in records] == ["bench", "layer_summary", "goal"]
    assert records[-1]["reason"] == "its measurement failed"


def test_the_fp16_engine_is_compared_with_that_of_fp32(monkeypatch: pytest.MonkeyPatch, zen: Any) -> None:
    monkeypatch.setattr(cpu_engine, "MODEL", "bert-tiny")
    monkeypatch.setattr(cpu_engine, "TOKENS", 16)
    with fp16.emulation():
        outcome = cpu_engine.fp16_engine(zen, 0.0, lambda records: None)
    assert not outcome.failures
    for batch in (1, 8):
        # The emulation is slower.
        assert 0 < outcome.figures[cpu_engine.FP16_ENGINE.format(batch)].value < 1
