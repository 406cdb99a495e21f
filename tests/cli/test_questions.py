"""Questions about paragraphs: BERT's own windows, questions without an answer, and the lengths of a run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from sparsebert import results
from sparsebert.cli import app
from tests.cli.tiny import QUICK, refused, write_squad

pytest.importorskip("accelerate")
pytest.importorskip("sklearn")

# A paragraph of several windows of 24 tokens.
CONTEXT = "the film is good a plot is bad the film is fine a plot is poor the film is great"


def questions(answers: tuple[str, ...]) -> dict[str, Any]:
    """Twelve questions, whose answers take turns; the empty one is none."""
    asked = [
        {
            "id": str(number),
            "question": f"{('is', 'a')[not answer]} the film {answer or 'awful'}",
            "is_impossible": not answer,
            "answers": [{"text": answer, "answer_start": CONTEXT.index(answer)}] if answer else [],
        }
        for number in range(12)
        for answer in [answers[number % len(answers)]]
    ]
    return {"data": [{"paragraphs": [{"context": CONTEXT, "qas": asked}]}]}


@pytest.fixture(scope="module")
def squad2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    (folder / "squad-v2.0").mkdir()
    for name in ("train-v2.0.json", "dev-v2.0.json"):
        (folder / "squad-v2.0" / name).write_text(json.dumps(questions(("good", "", "fine"))))
    return folder


@pytest.fixture(scope="module")
def run(squad2: Path, bert: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dense run on SQuAD 2 with BERT's windows: 24 tokens, of which the next begin 6 later."""
    out = tmp_path_factory.mktemp("runs") / "run"
    asked = ["train", "--task", "squad2", "--data", str(squad2), "--model", str(bert), "--method", "dense"]
    windows = ["--max-length", "24", "--doc-stride", "6", "--max-context"]
    assert app.main([*asked, *windows, "--out", str(out), *QUICK, "--steps", "30"]) == 0
    return out


def evaluated(run: Path, data: Path, rows_file: Path, *more: str) -> dict[str, Any]:
    asked = ["eval", "--model", str(run), "--task", "squad2", "--data", str(data), "--json", str(rows_file)]
    assert app.main([*asked, *more]) == 0
    return results.read(rows_file, "eval")[-1]


class TestSquad2:
    def test_a_run_is_evaluated_as_it_was_trained(
        self, run: Path, squad2: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        (logged,) = results.read(run / "log.jsonl", "round")
        assert (logged["max_length"], logged["doc_stride"], logged["max_context"]) == (24, 6, True)
        assert logged["metrics"].keys() >= {"f1", "exact", "HasAns_f1", "NoAns_exact", "best_f1_thresh"}
        assert logged["chance"]["f1"] == pytest.approx(1 / 3)
        capsys.readouterr()
        row = evaluated(run, squad2, tmp_path / "rows.jsonl")
        assert row["metrics"] == logged["metrics"]
        windows = "squad2: examples of at most 24 tokens, doc stride 6, max context"
        assert f"{windows}, as in training" in capsys.readouterr().out
        assert row["text_format"] == {"max_length": 24, "doc_stride": 6, "max_context": True}

    def test_other_lengths_are_a_choice_and_said(
        self, run: Path, squad2: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        capsys.readouterr()
        row = evaluated(run, squad2, tmp_path / "rows.jsonl", "--max-length", "40", "--no-max-context")
        line = "of at most 40 tokens, doc stride 6, no max context; in training max length 24, max context\n"
        assert line in capsys.readouterr().out
        assert row["text_format"]["max_length"] == 40
        assert row["trained_text_format"]["max_length"] == 24

    def test_a_threshold_turns_answers_into_none(self, run: Path, squad2: Path, tmp_path: Path) -> None:
        rows_file, file = tmp_path / "rows.jsonl", tmp_path / "predictions.jsonl"
        never = evaluated(
            run, squad2, rows_file, "--null-score-diff-threshold", "-1000", "--predictions", str(file)
        )
        assert (never["metrics"]["NoAns_exact"], never["metrics"]["HasAns_exact"]) == (1.0, 0.0)
        rows = [json.loads(line) for line in file.read_text().splitlines()]
        assert [row["prediction"] for row in rows] == [""] * 12
        assert all(isinstance(row["scores"]["null_score_diff"], float) for row in rows)
        assert [row["label"] for row in rows[:2]] == [["good"], []]
        always = evaluated(run, squad2, rows_file, "--null-score-diff-threshold", "1000")
        assert always["metrics"]["NoAns_exact"] == 0.0
        # The best threshold does not depend on the one that is used.
        best = ("best_f1", "best_f1_thresh", "best_exact", "best_exact_thresh")
        assert [never["metrics"][name] for name in best] == [always["metrics"][name] for name in best]
        chosen = str(never["metrics"]["best_f1_thresh"])
        at_best = evaluated(run, squad2, rows_file, "--null-score-diff-threshold", chosen)
        assert at_best["metrics"]["f1"] == pytest.approx(never["metrics"]["best_f1"])

    def test_files_of_ones_own(
        self, run: Path, bert: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        file = tmp_path / "own.json"
        file.write_text(json.dumps(questions(("good", ""))))
        own = ["--validation-file", str(file)]
        assert app.main(["eval", "--model", str(run), *own, "--questions", "squad2"]) == 0
        assert "has no answer; only SQuAD 2.0 (task squad2) has such questions" in refused(
            capsys, "eval", "--model", str(run), *own, "--questions", "squad"
        )
        assert "--questions must be squad or squad2, got 'squad3'" in refused(
            capsys, "eval", "--model", str(run), *own, "--questions", "squad3"
        )
        asked = ["prune", "--model", str(bert), "--train-file", str(file), "--questions", "squad2"]
        snip = ["--method", "snip", "--sparsity", "0.5", "--doc-stride", "6", "--max-length", "24"]
        assert app.main([*asked, *snip, "--output", str(tmp_path / "ticket.safetensors")]) == 0

    def test_changed_questions_and_pruning(self, run: Path, squad2: Path, tmp_path: Path) -> None:
        rows_file = tmp_path / "rows.jsonl"
        evaluated(run, squad2, rows_file, "--perturb", "shuffle")
        (row,) = results.read(rows_file, "robustness")
        assert row["metric"] == "f1"
        asked = ["prune", "--model", str(run / "model"), "--task", "squad2", "--data", str(squad2)]
        alps = [
            "--method",
            "alps",
            "--sparsity",
            "0.5",
            "--count",
            "10",
            "--output",
            str(tmp_path / "pruned"),
        ]
        assert app.main([*asked, *alps]) == 0
        evaluated(tmp_path / "pruned", squad2, rows_file)

    def test_a_question_that_contradicts_itself_is_refused(
        self, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        content = questions(("good",))
        content["data"][0]["paragraphs"][0]["qas"][3]["is_impossible"] = True
        file = tmp_path / "own.json"
        file.write_text(json.dumps(content))
        asked = ["eval", "--model", str(run), "--validation-file", str(file), "--questions", "squad2"]
        assert "question 3 is_impossible, but has answers" in refused(capsys, *asked)


class TestLengths:
    def test_of_a_run_on_sentences(
        self, asked: list[str], data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert app.main(["train", "--method", "dense", *asked, "--max-length", "5"]) == 0
        capsys.readouterr()
        there = ["--model", str(tmp_path / "run"), "--task", "sst2", "--data", str(data)]
        assert app.main(["eval", *there, "--json", str(tmp_path / "rows.jsonl")]) == 0
        assert "sst2: examples of at most 5 tokens, as in training" in capsys.readouterr().out
        (logged,) = results.read(tmp_path / "run" / "log.jsonl", "round")
        (row,) = results.read(tmp_path / "rows.jsonl", "eval")
        assert row["metrics"] == logged["metrics"]

    def test_of_a_model_from_elsewhere_is_the_default(
        self, asked: list[str], data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert app.main(["train", "--method", "dense", *asked]) == 0
        config = tmp_path / "run" / "model" / "config.json"
        content = json.loads(config.read_text())
        assert content.pop("text_format") == {"max_length": 128}
        config.write_text(json.dumps(content))
        capsys.readouterr()
        there = ["--model", str(tmp_path / "run" / "model"), "--task", "sst2", "--data", str(data)]
        assert app.main(["eval", *there]) == 0
        line = "sst2: examples of at most 128 tokens; the model does not record the format of its training"
        assert line in capsys.readouterr().out
        config.write_text(json.dumps({**content, "text_format": {"max_length": "long"}}))
        line = "text_format in the model's config.json: max_length cannot be 'long'"
        assert line in refused(capsys, "eval", *there)

    def test_windows_are_for_questions(
        self, asked: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        line = refused(capsys, "train", "--method", "dense", *asked, "--doc-stride", "128")
        assert "doc_stride applies to tasks with questions, sst2 has none: omit it" in line
        line = refused(capsys, "train", "--method", "dense", *asked, "--max-answer-length", "15")
        assert "max_answer_length applies to tasks with questions, sst2 has none: omit it" in line
        line = refused(capsys, "train", "--method", "dense", *asked, "--n-best-size", "0")
        assert "--n-best-size must be at least 1, got 0" in line
        write_squad(tmp_path / "data" / "squad-v1.1", ("good",))
        there = ["--task", "squad", "--data", str(tmp_path / "data"), "--null-score-diff-threshold", "1"]
        line = refused(capsys, "train", "--method", "dense", *asked, *there)
        assert "applies to tasks with questions that may have no answer, squad has none" in line
