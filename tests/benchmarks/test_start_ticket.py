"""The benchmark of start tickets: its runs, told apart by name, and what it commits."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("transformers")
pytest.importorskip("accelerate")

from benchmarks.lottery import start as module
from benchmarks.lottery.runs import Run
from benchmarks.lottery.start import FULL, QUICK, START, find_start, main, records, runs
from sparsebert import results

RESULTS = Path(module.__file__).parents[1] / "results" / "start_ticket.jsonl"


@pytest.mark.parametrize("preset", [FULL, QUICK])
def test_every_run_has_a_folder_of_its_own(preset: Any) -> None:
    names = [run.name for run in runs(preset)]
    assert len(set(names)) == len(names)
    assert not {run.name for run in runs(FULL)} & {run.name for run in runs(QUICK)}


@pytest.mark.parametrize("preset", [FULL, QUICK])
def test_every_run_with_a_start_has_a_run_without(preset: Any) -> None:
    dense = {(run.seed, run.label, run.sparsity, str(run.options)) for run in runs(preset) if not run.start}
    started = {(run.seed, run.label, run.sparsity, str(run.options)) for run in runs(preset) if run.start}
    assert started == dense


def test_records_say_what_the_start_took_and_with_which_rate(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def carry_out(run: Run, folder: Path, data: Path) -> list[dict[str, Any]]:
        return [{"run": run.name, "start_ticket": {"method": "alps"} if run.start else None}]

    monkeypatch.setattr(module, "carry_out", carry_out)
    monkeypatch.setattr(module, "find_start", lambda folder, data: 75.0)
    rows = list(records(QUICK, tmp_path, tmp_path))
    assert {row["learning_rate"] for row in rows} == {QUICK.learning_rate}
    assert {row["start_ticket"]["seconds"] for row in rows if row["start_ticket"]} == {75.0}


def test_a_start_that_is_there_is_not_found_again(tmp_path: Path) -> None:
    (tmp_path / START).mkdir()
    assert find_start(tmp_path / START, tmp_path) is None
    (tmp_path / f"{START}.seconds.json").write_text(json.dumps(75.0))
    assert find_start(tmp_path / START, tmp_path) == 75.0


def test_the_committed_results_are_those_of_the_quick_preset() -> None:
    rows = results.read(RESULTS)
    assert {row["run"] for row in rows} == {run.name for run in runs(QUICK)}
    assert {row["steps"] for row in rows} <= {run.training["steps"] for run in runs(QUICK)}


def test_without_task_data_it_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["start", "--data", "/nowhere"])
    assert main() == 2
    assert "no task data" in capsys.readouterr().err
