"""The benchmark of start tickets: its runs, told apart by name, and what it commits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("transformers")
pytest.importorskip("accelerate")

from benchmarks.lottery import start as module
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


def test_records_say_with_which_rate(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(module, "carry_out", lambda run, folder, data: [{"run": run.name}])
    monkeypatch.setattr(module, "find_start", lambda folder, data: None)
    found = [row for rows in records(QUICK, tmp_path, tmp_path) for row in rows]
    assert [row["run"] for row in found] == [run.name for run in runs(QUICK)]
    assert {row["learning_rate"] for row in found} == {QUICK.learning_rate}


def test_a_start_that_is_there_is_not_found_again(tmp_path: Path) -> None:
    (tmp_path / START).mkdir()
    find_start(tmp_path / START, tmp_path / "no data")


def test_the_committed_results_are_those_of_one_preset() -> None:
    rows = results.read(RESULTS)
    steps = {
        preset.steps: {run.name: run.training["steps"] for run in runs(preset)} for preset in (QUICK, FULL)
    }
    of_preset = next(each for each in steps.values() if rows[0]["run"] in each)
    assert all(row["steps"] == of_preset[row["run"]] for row in rows)


def test_without_task_data_it_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["start", "--data", "/nowhere"])
    assert main() == 2
    assert "no task data" in capsys.readouterr().err
