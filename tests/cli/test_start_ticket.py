"""``sparsebert train --start-ticket``: from a one-shot ticket's folder to a table of what it saves."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from sparsebert import results
from sparsebert.cli import app
from sparsebert.pruning import prune
from sparsebert.tickets.ticket import Ticket
from tests.cli.tiny import WORDS, refused

transformers = pytest.importorskip("transformers")
pytest.importorskip("accelerate")
pytest.importorskip("sklearn")


@pytest.fixture
def pruned(bert: Path, tmp_path: Path) -> Path:
    """The folder that ``prune --texts`` writes, 40 % sparse, with changed weights."""
    words = [word for word in WORDS if word.isalpha()]
    texts = tmp_path / "texts.txt"
    texts.write_text("\n".join(" ".join(words[i % len(words) :][:7] or words[:3]) for i in range(40)) + "\n")
    folder = tmp_path / "sparsegpt-40"
    arguments = ["--model", str(bert), "--method", "sparsegpt", "--texts", str(texts), "--count", "24"]
    assert app.main(["prune", *arguments, "--sparsity", "0.4", "--output", str(folder)]) == 0
    return folder


@pytest.fixture
def started(asked: list[str], pruned: Path) -> list[str]:
    return ["train", *asked, "--start-ticket", str(pruned)]


def test_imp_goes_on_from_the_folder_of_a_one_shot_ticket(
    started: list[str], pruned: Path, asked: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    records = ["--json", str(tmp_path / "rows.jsonl")]
    steps = ["--sparsity", "0.6", "--step", "0.2", *records]
    assert app.main([*started, "--method", "imp", *steps]) == 0
    assert "sparsegpt changed the weights that the start ticket keeps, but the model has others" in (
        capsys.readouterr().err
    )
    rows = results.read(tmp_path / "rows.jsonl", "round")
    assert [row["sparsity"] for row in rows] == pytest.approx([0.4, 0.6], abs=0.01)
    assert {row["start_ticket"]["method"] for row in rows} == {"sparsegpt"}
    run = json.loads((tmp_path / "run" / "run.json").read_text())
    assert run["start_ticket"] == Ticket.load(pruned / "ticket.safetensors").digest
    dense = [word.replace(str(tmp_path / "run"), str(tmp_path / "dense")) for word in asked]
    assert app.main(["train", *dense, "--method", "imp", *steps]) == 0
    capsys.readouterr()
    assert app.main(["report", str(tmp_path / "rows.jsonl")]) == 0
    out = capsys.readouterr().out
    assert "Spent until a sparsity: tiny-bert on sst2" in out
    assert "imp from SparseGPT 40%" in out


def test_a_run_may_start_from_the_changed_weights_too(
    pruned: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], started: list[str]
) -> None:
    started[started.index("--model") + 1] = str(pruned)
    assert app.main([*started, "--method", "movement", "--sparsity", "0.6"]) == 0
    assert "starts from the weights that sparsegpt has changed" in capsys.readouterr().err
    (row,) = results.read(tmp_path / "run" / "log.jsonl", "round")
    assert row["start_ticket"]["own_weights"] is True


def test_a_changed_ticket_does_not_resume(
    started: list[str], bert: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [*started, "--method", "movement", "--sparsity", "0.6"]
    assert app.main(arguments) == 0
    other = tmp_path / "other.safetensors"
    prune(transformers.BertModel.from_pretrained(bert), "random", sparsity=0.4).save(other)
    arguments[arguments.index("--start-ticket") + 1] = str(other)
    assert "holds a run with start_ticket 'sha256:" in refused(capsys, *arguments)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ["--method", "dense"],
            "method dense does not start from a ticket: omit the start ticket, or use cap",
        ),
        (["--method", "random", "--sparsity", "0.6"], "method random does not start from a ticket"),
        (["--method", "imp", "--sparsity", "0.2"], "more than the run is to prune, 20.0%"),
        (["--method", "movement", "--sparsity", "0.6", "--granularity", "row"], "prunes parts of units of"),
        (["--method", "importance", "--sparsity", "0.6"], "prunes parts of units of"),
    ],
)
def test_a_start_that_does_not_fit_is_refused_in_one_line(
    started: list[str], options: list[str], message: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert message in refused(capsys, *started, *options).removeprefix("sparsebert: ")
    assert not (tmp_path / "run").exists()


def test_a_path_that_holds_no_ticket(
    asked: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty").mkdir()
    arguments = ["train", *asked, "--sparsity", "0.6", "--start-ticket"]
    assert "holds neither a run nor a ticket" in refused(capsys, *arguments, str(tmp_path / "empty"))
    assert "does not exist" in refused(capsys, *arguments, str(tmp_path / "nowhere"))
