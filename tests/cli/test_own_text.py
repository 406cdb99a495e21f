"""Language modelling on a text of one's own, through every command that takes a task."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from sparsebert import results
from sparsebert.cli import app
from tests import decoders
from tests.cli.tiny import BAD, GOOD, OTHER, QUICK, refused, save

pytest.importorskip("accelerate")


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("text") / "own.txt"
    draw = random.Random(0)
    lines = [" ".join(draw.choice(GOOD + BAD + OTHER) for _ in range(12)) for _ in range(150)]
    file.write_text("\n\n".join(lines) + "\n")
    return file


class Case:
    """A model and the options that name the text for it."""

    def __init__(self, model: Path, lm: str, text: Path) -> None:
        self.model = ["--model", str(model)]
        self.train = ["--lm", lm, "--train-file", str(text), "--max-length", "10"]
        self.both = [*self.train, "--validation-file", str(text)]
        self.held_out = ["--lm", lm, "--validation-file", str(text)]


@pytest.fixture(params=["masked", "causal"])
def case(request: pytest.FixtureRequest, tokenizer: object, text: Path, tmp_path: Path) -> Case:
    if request.param == "masked":
        return Case(save(tmp_path / "bert-lm", tokenizer, "BertForMaskedLM"), "masked", text)
    return Case(decoders.saved(tmp_path / "gpt2", decoders.gpt2()), "causal", text)


def test_a_ticket_is_found_evaluated_and_transferred(
    case: Case, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, rows_file = tmp_path / "run", tmp_path / "rows.jsonl"
    asked = ["--method", "one-shot", "--sparsity", "0.5", "--out", str(run)]
    assert app.main(["train", *case.model, *case.both, *asked, *QUICK]) == 0
    (logged,) = results.read(run / "log.jsonl", "round")
    capsys.readouterr()
    assert app.main(["eval", "--model", str(run), *case.held_out, "--json", str(rows_file)]) == 0
    (row,) = results.read(rows_file, "eval")
    assert row["metrics"] == logged["metrics"]
    assert "own: examples of at most 10 tokens, as in training" in capsys.readouterr().out
    there = ["--tasks", "own", *case.model, *case.both, "--out", str(tmp_path / "matrix"), *QUICK]
    assert app.main(["transfer", "--ticket", str(run), *there, "--json", str(rows_file)]) == 0
    assert len(results.read(rows_file, "transfer")) == 2


@pytest.mark.parametrize("method", ["sparsegpt", "obert", "snip"])
def test_it_calibrates_pruning(case: Case, tmp_path: Path, method: str) -> None:
    output = tmp_path / ("pruned.safetensors" if method == "snip" else "pruned")
    asked = ["prune", *case.model, *case.train, "--method", method, "--sparsity", "0.5"]
    assert app.main([*asked, "--output", str(output)]) == 0


def test_it_heals(tokenizer: object, text: Path, tmp_path: Path) -> None:
    case = Case(save(tmp_path / "bert-lm", tokenizer, "BertForMaskedLM"), "masked", text)
    asked = ["prune", *case.model, *case.train, "--method", "sparsegpt", "--sparsity", "0.5"]
    assert app.main([*asked, "--output", str(tmp_path / "pruned")]) == 0
    teacher = ["--teacher", case.model[1], "--steps", "2"]
    asked = ["heal", str(tmp_path / "pruned"), *case.train, *teacher]
    assert app.main([*asked, "--output", str(tmp_path / "healed")]) == 0


def test_a_text_without_its_form_is_said_to_need_one(
    case: Case, text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = ["--train-file", str(text), "--validation-file", str(text), "--method", "dense", *QUICK]
    line = refused(capsys, "train", *case.model, *files, "--out", str(tmp_path / "run"))
    assert "own.txt:1: no column 'text'" in line
    assert "if it is running text, add --lm masked or --lm causal" in line
