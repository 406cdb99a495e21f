"""``train --method multi-task``: several tasks, one ticket, a model for each; and units across matrices."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from sparsebert import results
from sparsebert.cli import app
from sparsebert.tasks import encoding, find_task
from sparsebert.tickets.ticket import Ticket
from tests.cli.tiny import PRUNABLE, refused

pytest.importorskip("transformers")
pytest.importorskip("accelerate")
pytest.importorskip("sklearn")

SEVERAL = ["--method", "multi-task", "--also", "wikitext-2,cola", "--proportions", "2,1,1"]


def test_a_language_model_and_two_classifiers_find_one_ticket(
    capsys: pytest.CaptureFixture[str], asked: list[str], there: list[str], tmp_path: Path
) -> None:
    rows_file = tmp_path / "results.jsonl"
    arguments = [*asked, *SEVERAL, "--sparsity", "0.7", "--step", "0.35", "--json", str(rows_file)]
    assert app.main(["train", *arguments]) == 0
    rows = results.read(rows_file, "round")
    assert [row["kept"] for row in rows] == [PRUNABLE, PRUNABLE * 65 // 100, PRUNABLE * 30 // 100]
    assert (rows[0]["task"], rows[0]["also"]) == ("sst2", ["wikitext-2", "cola"])
    assert set(rows[0]["metrics"]) == {"accuracy", "wikitext-2_accuracy", "cola_mcc", "cola_accuracy"}
    ticket = Ticket.load(tmp_path / "run" / "ticket.safetensors")
    assert ticket.sparsity == 0.7
    capsys.readouterr()
    for task, metric in (("sst2", "accuracy"), ("cola", "cola_mcc"), ("wikitext-2", "wikitext-2_accuracy")):
        trained = ["--model", str(tmp_path / "run" / "model" / task), *there[2:]]
        assert app.main(["eval", "--task", task, *trained]) == 0
        assert f"{rows[-1]['metrics'][metric]:.4f}" in capsys.readouterr().out
    assert app.main(["train", *arguments]) == 0
    assert "is finished: nothing to do" in capsys.readouterr().out


def test_the_seeds_share_the_encoded_examples_of_every_task(
    monkeypatch: pytest.MonkeyPatch, asked: list[str]
) -> None:
    encoded: list[str] = []
    plain = encoding.encode

    def encode(examples: Any, task: Any, *arguments: Any) -> Any:
        encoded.append(find_task(task).name)
        return plain(examples, task, *arguments)

    monkeypatch.setattr(encoding, "encode", encode)
    arguments = [*asked, *SEVERAL, "--sparsity", "0.5", "--step", "0.5", "--seeds", "1,2"]
    assert app.main(["train", *arguments]) == 0
    # Each once to train on, and once to be evaluated on.
    assert sorted(encoded) == ["cola", "cola", "sst2", "sst2", "wikitext-2", "wikitext-2"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--method", "multi-task"], "multi-task needs another task besides sst2"),
        (["--method", "imp", "--also", "cola"], "imp works on one task; omit the other tasks, keep sst2"),
        (["--method", "multi-task", "--also", "cola,sst2"], "sst2 is named twice"),
        (["--method", "multi-task", "--also", "colla"], "did you mean 'cola'"),
        ([*SEVERAL[:4], "--proportions", "2,1"], "proportions must name 3 tasks, got 2 numbers"),
        ([*SEVERAL[:4], "--proportions", "often"], "proportions must be 'equal', 'size' or"),
        ([*SEVERAL, "--group-by-length"], "group_by_length applies to a single task"),
    ],
)
def test_what_makes_no_sense_is_refused(
    capsys: pytest.CaptureFixture[str], asked: list[str], arguments: list[str], message: str, tmp_path: Path
) -> None:
    assert message in refused(capsys, "train", *asked, "--sparsity", "0.5", *arguments)
    assert not (tmp_path / "run" / "log.jsonl").exists()


@pytest.mark.parametrize("granularity", ["neuron", "head"])
def test_units_across_matrices_are_asked_for_by_name(
    capsys: pytest.CaptureFixture[str], asked: list[str], granularity: str, tmp_path: Path
) -> None:
    arguments = [*asked, "--granularity", granularity, "--sparsity", "0.5", "--method", "one-shot"]
    assert app.main(["train", *arguments]) == 0
    out = capsys.readouterr().out
    assert f"granularity '{granularity}'" in out
    assert "of all encoder matrices" in out
    (row,) = results.read(tmp_path / "run" / "log.jsonl", "round")
    assert row["sparsity"] == 0.5
    assert 0 < row["encoder_sparsity"] < 0.5
