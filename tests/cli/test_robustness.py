"""``sparsebert eval`` beyond one number: changed texts, other data sets, and a file of predictions."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest

from sparsebert import results
from sparsebert.cli import app
from sparsebert.report.sections import KINDS
from tests.cli.tiny import refused, save, sentences, write_squad

pytest.importorskip("accelerate")
pytest.importorskip("sklearn")


@pytest.fixture
def run(asked: list[str], tmp_path: Path) -> Path:
    """A one-shot ticket on SST-2, whose words decide the label."""
    assert app.main(["train", "--method", "one-shot", "--sparsity", "0.5", *asked, "--steps", "40"]) == 0
    return tmp_path / "run"


@pytest.fixture
def evaluated(run: Path, data: Path) -> list[str]:
    """Evaluate the trained model with its ticket."""
    ticket = ["--ticket", str(run / "ticket.safetensors")]
    return ["eval", "--model", str(run / "model"), "--task", "sst2", "--data", str(data), *ticket]


class TestPerturb:
    def test_a_ticket_beside_the_dense_model(
        self, evaluated: list[str], run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        file = tmp_path / "rows.jsonl"
        dense = ["--dense", str(run / "model"), "--json", str(file)]
        assert app.main([*evaluated, *dense, "--perturb", "typos,casing,negation,shuffle"]) == 0
        rows = results.read(file, "robustness")
        names = ["typos", "casing", "negation", "shuffle"]
        assert [(row["perturbation"], row["dense"]) for row in rows] == [
            (name, dense) for dense in (False, True) for name in names
        ]
        (plain,) = results.read(file, "eval")
        for row in rows:
            assert row["clean"] == plain["metrics"]
            assert row["severity"] == {"negation": None, "shuffle": 1.0}.get(row["perturbation"], 0.1)
            assert row["perturb_seed"] == 0
        by_name = {row["perturbation"]: row for row in rows[:4]}
        # A lower-case vocabulary does not see the case.
        assert by_name["casing"]["other_answers"] == 0
        assert by_name["casing"]["metrics"] == plain["metrics"]
        assert by_name["negation"]["changed"] == 1.0
        out = capsys.readouterr().out
        assert "Robustness" in out
        assert "does not read their order" in out
        (table,) = KINDS["robustness"].tables(results.read(file))
        assert [line[0] for line in table.rows] == [
            "none",
            "typos 0.1",
            "casing 0.1",
            "negation",
            "shuffle 1",
        ]
        assert {"dense", "loss, dense", "model", "loss, model"} <= {*table.columns}

    def test_a_seed_and_a_severity(self, evaluated: list[str], tmp_path: Path) -> None:
        def rows(name: str, *options: str) -> list[dict[str, Any]]:
            file = tmp_path / f"{name}.jsonl"
            assert app.main([*evaluated, "--perturb", "typos,negation", *options, "--json", str(file)]) == 0
            return [
                {field: row[field] for field in ("severity", "perturb_seed", "metrics", "other_answers")}
                for row in results.read(file, "robustness")
            ]

        assert rows("one") == rows("again")
        more = rows("more", "--severity", "1", "--perturb-seed", "5")
        assert [row["severity"] for row in more] == [1.0, None]
        assert {row["perturb_seed"] for row in more} == {5}

    def test_several_seeds_are_summed_up(
        self, asked: list[str], tmp_path: Path, data: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        random = ["--method", "random", "--sparsity", "0.5", "--seeds", "1,2"]
        assert app.main(["train", *asked, *random]) == 0
        there = ["--model", str(tmp_path / "run"), "--task", "sst2", "--data", str(data)]
        file = tmp_path / "rows.jsonl"
        assert app.main(["eval", *there, "--perturb", "shuffle", "--json", str(file)]) == 0
        (table,) = KINDS["robustness"].tables(results.read(file))
        assert all("±" in line[3] for line in table.rows)
        assert "of 2 seeds" in table.notes[-1]

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            (["--perturb", "typo"], "unknown perturbation 'typo'"),
            (["--perturb", "typos,typos"], "--perturb must be different names"),
            (["--perturb", "typos", "--severity", "2"], "severity must be in (0, 1], got 2"),
            (["--perturb", "negation", "--severity", "0.5"], "negation has no degrees: omit the severity"),
            (["--severity", "0.5"], "--severity applies only with --perturb"),
            (["--perturb-seed", "1"], "--perturb-seed applies only with --perturb"),
            (
                ["--compact", "--perturb", "typos"],
                "--perturb applies only with an evaluation without",
            ),
            (["--predictions", "p.txt"], "predictions are written as .csv or .jsonl, got p.txt"),
            (["--predictions", "none/p.csv"], "--predictions: cannot write none/p.csv"),
        ],
    )
    def test_bad_options(self, options: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
        asked = ["eval", "--model", "nowhere", "--task", "sst2", "--ticket", "nowhere"]
        assert message in refused(capsys, *asked, *options)

    def test_language_modelling(
        self, asked: list[str], data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert app.main(["train", *asked, "--task", "wikitext-2", "--method", "dense"]) == 0
        there = [
            "eval",
            "--model",
            str(tmp_path / "run" / "model"),
            "--task",
            "wikitext-2",
            "--data",
            str(data),
        ]
        assert "wikitext-2 is language modelling" in refused(capsys, *there, "--perturb", "typos")
        line = refused(capsys, *there, "--predictions", str(tmp_path / "p.csv"))
        assert "--predictions needs a task with examples; wikitext-2 is language modelling" in line


class TestPredictions:
    def test_a_row_for_each_example(self, evaluated: list[str], tmp_path: Path) -> None:
        files = [tmp_path / "predictions.csv", tmp_path / "predictions.jsonl"]
        record = tmp_path / "rows.jsonl"
        for file in files:
            assert app.main([*evaluated, "--predictions", str(file), "--json", str(record)]) == 0
        with files[0].open(newline="", encoding="utf-8") as opened:
            table = list(csv.DictReader(opened))
        lines = [json.loads(line) for line in files[1].read_text(encoding="utf-8").splitlines()]
        expected = sentences(1)
        assert len(table) == len(lines) == len(expected)
        correct = 0
        for number, (cells, line, (text, label)) in enumerate(zip(table, lines, expected, strict=True), 1):
            assert line["texts"] == {"sentence": text}
            assert cells["texts.sentence"] == text
            assert line["label"] == cells["label"] == ("negative", "positive")[label]
            assert int(cells["id"]) == line["id"] == number
            assert line["split"] == "validation"
            assert sum(line["scores"].values()) == pytest.approx(1)
            assert line["prediction"] == max(line["scores"], key=line["scores"].__getitem__)
            assert float(cells["scores.positive"]) == line["scores"]["positive"]
            correct += line["prediction"] == line["label"]
        (row, _) = results.read(record, "eval")
        assert correct / len(lines) == row["metrics"]["accuracy"]

    def test_of_changed_texts(self, evaluated: list[str], tmp_path: Path) -> None:
        file = tmp_path / "predictions.jsonl"
        assert app.main([*evaluated, "--perturb", "negation", "--predictions", str(file)]) == 0
        lines = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
        assert [line["perturbation"] for line in lines] == [None] * 48 + ["negation"] * 48
        assert lines[48]["texts"]["sentence"] == lines[0]["texts"]["sentence"] + " and false is not true"

    def test_the_changed_texts_are_those_that_the_model_reads(
        self, evaluated: list[str], tmp_path: Path
    ) -> None:
        """A table of the changed texts gives the same scores."""
        file, table = tmp_path / "p.jsonl", tmp_path / "changed.csv"
        assert (
            app.main([*evaluated, "--perturb", "typos", "--severity", "1", "--predictions", str(file)]) == 0
        )
        lines = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()][48:]
        table.write_text("text,label\n" + "".join(f"{x['texts']['sentence']},{x['label']}\n" for x in lines))
        again = [*evaluated[:3], "--validation-file", str(table), *evaluated[-2:], "--predictions", str(file)]
        assert app.main(again) == 0
        others = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
        for one, two in zip(lines, others, strict=True):
            assert one["scores"] == pytest.approx(two["scores"], rel=1e-5)

    def test_questions(self, tmp_path: Path, tokenizer: Any, capsys: pytest.CaptureFixture[str]) -> None:
        write_squad(tmp_path / "data" / "squad-v1.1", ("film",))
        model = save(tmp_path / "qa", tokenizer, "BertForQuestionAnswering")
        there = ["--task", "squad", "--data", str(tmp_path / "data"), "--max-length", "24"]
        file = tmp_path / "p.csv"
        asked = ["eval", "--model", str(model), *there, "--predictions", str(file)]
        assert app.main([*asked, "--perturb", "shuffle"]) == 0
        with file.open(newline="", encoding="utf-8") as opened:
            first, *_ = rows = list(csv.DictReader(opened))
        assert len(rows) == 16
        assert (first["id"], first["label"]) == ("0", '["film"]')
        assert "scores" not in str([*first])
        assert "negation adds a clause" in refused(capsys, *asked, "--perturb", "negation")

    def test_a_regression(self, tmp_path: Path, tokenizer: Any) -> None:
        rows = "".join(f"{text},{score}\n" for score, (text, _) in enumerate(sentences(count=6)))
        (tmp_path / "valid.csv").write_text(f"text,label\n{rows}")
        model = save(tmp_path / "m", tokenizer, "BertForSequenceClassification", num_labels=1)
        own = ["--validation-file", str(tmp_path / "valid.csv"), "--regression"]
        file = tmp_path / "p.jsonl"
        assert app.main(["eval", "--model", str(model), *own, "--predictions", str(file)]) == 0
        lines = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
        assert [line["label"] for line in lines] == [0, 1, 2, 3, 4, 5]
        assert all(isinstance(line["prediction"], float) and "scores" not in line for line in lines)


class TestOtherDataSets:
    def test_a_ticket_of_one_task_on_the_data_of_another(
        self, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """The same sentences with other names of the labels: the same answers."""
        rows = "".join(f"{text},{('thumbs-down', 'thumbs-up')[label]}\n" for text, label in sentences(1))
        (tmp_path / "other.csv").write_text(f"text,label\n{rows}")
        file = tmp_path / "rows.jsonl"
        there = ["eval", "--model", str(run / "model"), "--validation-file", str(tmp_path / "other.csv")]
        there += [
            "--task",
            "other",
            "--ticket",
            str(run / "ticket.safetensors"),
            "--dense",
            str(run / "model"),
        ]
        mapped = ["--label-map", "thumbs-up=positive,thumbs-down=negative"]
        assert app.main([*there, *mapped, "--json", str(file), "--perturb", "shuffle"]) == 0
        (row,) = results.read(file, "eval")
        (logged,) = results.read(run / "log.jsonl", "round")
        assert row["metrics"]["accuracy"] == logged["metrics"]["accuracy"]
        assert row["label_map"] == {"thumbs-up": "positive", "thumbs-down": "negative"}
        (table, *_) = KINDS["evaluations"].tables(results.read(file))
        assert "thumbs-up=positive, thumbs-down=negative" in table.rows[0]
        capsys.readouterr()
        assert "thumbs-down" in refused(capsys, *there)

    def test_a_built_in_task(
        self, run: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """SST-2's model on CoLA's data, whose labels have other names and the same sentences here."""
        file = tmp_path / "rows.jsonl"
        there = ["eval", "--model", str(run / "model"), "--task", "cola", "--data", str(data)]
        mapped = ["--label-map", "acceptable=positive,unacceptable=negative", "--json", str(file)]
        assert app.main([*there, "--ticket", str(run / "ticket.safetensors"), *mapped]) == 0
        (row,) = results.read(file, "eval")
        (logged,) = results.read(run / "log.jsonl", "round")
        assert row["metrics"]["accuracy"] == logged["metrics"]["accuracy"]
        assert "--label-map" in refused(capsys, *there)
