"""The real tickets' runs: told apart by name, and each ticket found before it is transferred."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("transformers")
pytest.importorskip("accelerate")

from benchmarks.lottery import __main__ as module
from benchmarks.lottery.__main__ import earlier_records, main, rounds
from benchmarks.lottery.runs import SEEDS, Run, curve, learned, sources, targets


def test_every_run_has_a_folder_of_its_own() -> None:
    runs = [*(run for seed in SEEDS for run in (*curve(seed), *learned(seed))), *sources(), *targets()]
    asked = {run.name: (run.task, run.seed, run.method, run.sparsity, run.ticket) for run in runs}
    assert all(asked[run.name] == (run.task, run.seed, run.method, run.sparsity, run.ticket) for run in runs)


def test_every_ticket_that_is_transferred_is_found_first() -> None:
    found = {run.name for run in sources()}
    assert {run.ticket for run in targets() if run.ticket} == found
    labels = Counter((run.task, run.label) for run in targets())
    assert set(labels.values()) == {len(SEEDS)}


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The runs that were carried out, instead of training them."""
    names: list[str] = []

    def carry_out(run: Run, runs: Path, data: Path) -> list[dict[str, Any]]:
        names.append(run.name)
        return [{"run": run.name, "kind": "round", "masks_sha256": f"of {run.name}", "ticket_sha256": "file"}]

    monkeypatch.setattr(module, "carry_out", carry_out)
    return names


def test_what_a_results_file_holds_is_not_trained_again(trained: list[str], tmp_path: Path) -> None:
    run, other = list(curve(1))[:2]
    row = {
        "run": run.name,
        "kind": "round",
        "round": 0,
        "sparsity": 0.0,
        "part": run.part,
        "label": run.label,
    }
    known = {run.name: [row, {"run": run.name, "kind": "bench"}]}
    assert list(rounds(run, known, tmp_path, tmp_path)) == [row]
    assert [row["run"] for row in rounds(other, known, tmp_path, tmp_path)] == [other.name]
    assert trained == [other.name]


def test_what_two_parts_have_in_common_stands_once_in_each(trained: list[str], tmp_path: Path) -> None:
    alone = next(run for run in curve(1) if run.label == "dense")
    moved = next(run for run in targets() if run.name == alone.name)
    row = {"run": alone.name, "kind": "round", "round": 0}
    known = {alone.name: [row | {"part": run.part, "label": run.label} for run in (alone, moved, alone)]}
    for run in (alone, moved):
        assert [each["part"] for each in rounds(run, known, tmp_path, tmp_path)] == [run.part]
    assert trained == []


def test_the_committed_results_are_those_of_the_runs() -> None:
    known = earlier_records(Path(module.__file__).parents[1] / "results" / "lottery.jsonl")
    runs = [*(run for seed in SEEDS for run in (*curve(seed), *learned(seed))), *sources(), *targets()]
    assert known.keys() <= {run.name for run in runs}


def test_a_ticket_that_is_found_again_must_be_the_known_one(trained: list[str], tmp_path: Path) -> None:
    target = next(run for run in targets() if run.ticket)
    assert target.ticket is not None
    known = {target.ticket: [{"kind": "round", "masks_sha256": f"of {target.ticket}"}]}
    list(rounds(target, known, tmp_path, tmp_path))
    assert trained == [target.ticket, target.name]
    known[target.ticket][0]["masks_sha256"] = "of another machine"
    with pytest.raises(ValueError, match="finds another ticket"):
        list(rounds(target, known, tmp_path, tmp_path))
    older = {target.ticket: [{"kind": "round", "ticket_sha256": "file"}]}  # they know the ticket by its file
    assert list(rounds(target, older, tmp_path, tmp_path))
    older[target.ticket][0]["ticket_sha256"] = "another file"
    with pytest.raises(ValueError, match="finds another ticket"):
        list(rounds(target, older, tmp_path, tmp_path))


def test_without_task_data_it_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["lottery", "--data", "/nowhere"])
    assert main() == 2
    assert "no task data" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        (
            ["--plot", "curve.jpg", "--out", "new.jsonl"],
            "--plot: cannot draw curve.jpg: a picture's name ends with",
        ),
        (["--plot", "curve.png"], "--plot needs --out"),
    ],
)
def test_a_picture_that_cannot_be_drawn_is_refused_before_hours_of_work(
    asked: list[str],
    message: str,
    trained: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    monkeypatch.setattr("sys.argv", ["lottery", "--data", str(tmp_path), *asked])
    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err
    assert trained == []
