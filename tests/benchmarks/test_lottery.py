"""The real tickets' runs: told apart by name, and each ticket found before it is transferred."""

from __future__ import annotations

from collections import Counter

import pytest

pytest.importorskip("transformers")
pytest.importorskip("accelerate")

from benchmarks.lottery.__main__ import main
from benchmarks.lottery.runs import SEEDS, curve, learned, sources, targets


def test_every_run_has_a_folder_of_its_own() -> None:
    runs = [*(run for seed in SEEDS for run in (*curve(seed), *learned(seed))), *sources(), *targets()]
    asked = {run.name: (run.task, run.seed, run.method, run.sparsity, run.ticket) for run in runs}
    assert all(asked[run.name] == (run.task, run.seed, run.method, run.sparsity, run.ticket) for run in runs)


def test_every_ticket_that_is_transferred_is_found_first() -> None:
    found = {run.name for run in sources()}
    assert {run.ticket for run in targets() if run.ticket} == found
    labels = Counter((run.task, run.label) for run in targets())
    assert set(labels.values()) == {len(SEEDS)}


def test_without_task_data_it_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["lottery", "--data", "/nowhere"])
    assert main() == 2
    assert "no task data" in capsys.readouterr().err
