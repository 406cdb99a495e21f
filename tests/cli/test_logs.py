"""What long commands print where stderr is not a terminal: lines on their progress."""

from __future__ import annotations

import re
import time
from pathlib import Path
from typing import Any

import pytest

from sparsebert.cli import app

pytest.importorskip("transformers")
pytest.importorskip("accelerate")
pytest.importorskip("sklearn")

DONE = r"step 6 of 6, loss \d\.\d{4}, accuracy \d\.\d{4}, done in \d+ s"


@pytest.fixture
def busy(monkeypatch: pytest.MonkeyPatch) -> None:
    """A line every 20 ms."""
    monkeypatch.setenv("SPARSEBERT_LOG_SECONDS", "0.02")


def test_a_run_prints_a_line_at_the_start_and_at_the_end_of_a_round(
    capsys: pytest.CaptureFixture[str], asked: list[str]
) -> None:
    arguments = [*asked, "--method", "imp", "--sparsity", "0.4", "--step", "0.4"]
    assert app.main(["train", *arguments]) == 0
    first, dense, second, sparse = capsys.readouterr().err.splitlines()
    assert (first, second) == ("round 1 of 2, 0.0% sparse", "round 2 of 2, 40.0% sparse")
    assert re.fullmatch(rf"{first}: {DONE}, about \d+ s left", dense)
    assert re.fullmatch(rf"{second}: {DONE}", sparse)


def test_runs_of_several_seeds_are_told_apart(
    capsys: pytest.CaptureFixture[str], asked: list[str], tmp_path: Path
) -> None:
    arguments = [*asked, "--method", "random", "--sparsity", "0.5", "--seeds", "1,2"]
    assert app.main(["train", *arguments, "--dense", str(tmp_path / "dense")]) == 0
    lines = capsys.readouterr().err.splitlines()
    names = ["seed 1", "seed 2", "dense, seed 1", "dense, seed 2"]
    assert [line.rpartition(": round 1")[0] for line in lines] == [name for name in names for _ in range(2)]


@pytest.mark.usefixtures("busy")
def test_a_slow_training_prints_step_loss_and_remaining_time(
    capsys: pytest.CaptureFixture[str], asked: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from sparsebert.training.callbacks import ProgressCallback

    end = ProgressCallback.on_step_end

    def slow(self: Any, *arguments: Any, **now: Any) -> None:
        end(self, *arguments, **now)
        time.sleep(0.1)

    monkeypatch.setattr(ProgressCallback, "on_step_end", slow)
    save = ["--save-steps", "2"]  # the loss is logged with every checkpoint
    assert app.main(["train", *asked, "--method", "random", "--sparsity", "0.5", *save]) == 0
    err = capsys.readouterr().err
    assert re.search(r"round 1 of 1, 50\.0% sparse: step 4 of 6, loss \d\.\d{4}, \d+ s left", err)


@pytest.mark.usefixtures("busy")
def test_a_search_prints_its_evaluations_and_the_last_metric(
    capsys: pytest.CaptureFixture[str], asked: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from sparsebert.pruning import greedy_search

    require = greedy_search.least_metric

    def slow(whole: float, threshold: float) -> float:
        time.sleep(0.1)
        return require(whole, threshold)

    monkeypatch.setattr(greedy_search, "least_metric", slow)
    assert app.main(["train", *asked, "--method", "importance-search"]) == 0
    pattern = r"round 2 of 2: deciding on the ticket for \d+ s, 1 evaluations?, last accuracy \d\.\d{4}"
    assert re.search(pattern, capsys.readouterr().err)


@pytest.mark.usefixtures("busy")
def test_a_transfer_names_the_run_and_its_progress(
    capsys: pytest.CaptureFixture[str], asked: list[str], bert: Path, tmp_path: Path
) -> None:
    ticket = tmp_path / "ticket"
    assert app.main(["prune", "--model", str(bert), "--output", str(ticket)]) == 0
    capsys.readouterr()
    arguments = [*asked[2:], "--tasks", "sst2", "--ticket", f"a={ticket}"]
    assert app.main(["transfer", *arguments]) == 0
    lines = capsys.readouterr().err.splitlines()
    done = [line for line in lines if re.search(DONE, line)]
    assert [line.partition(": round 1 of 1")[0] for line in done] == [
        "dense on sst2, seed 0",
        "a on sst2, seed 0",
    ]


@pytest.mark.usefixtures("busy")
def test_slow_steps_of_other_commands_are_printed(
    capsys: pytest.CaptureFixture[str], bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sparsebert import pruning

    prune = pruning.prune

    def slow(*arguments: Any, **options: Any) -> Any:
        time.sleep(0.1)
        return prune(*arguments, **options)

    monkeypatch.setattr(pruning, "prune", slow)
    assert app.main(["prune", "--model", str(bert), "--output", str(tmp_path / "ticket")]) == 0
    assert "pruning, for 0 s" in capsys.readouterr().err.splitlines()


def test_a_short_command_prints_nothing(
    capsys: pytest.CaptureFixture[str], bert: Path, tmp_path: Path
) -> None:
    assert app.main(["prune", "--model", str(bert), "--output", str(tmp_path / "ticket")]) == 0
    assert capsys.readouterr().err == ""


def test_an_interval_that_is_not_a_number_is_refused(
    capsys: pytest.CaptureFixture[str], asked: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SPARSEBERT_LOG_SECONDS", "often")
    assert app.main(["train", *asked, "--method", "random", "--sparsity", "0.5"]) == 2
    err = capsys.readouterr().err
    assert err == "sparsebert: SPARSEBERT_LOG_SECONDS must be a positive number of seconds, got 'often'\n"
