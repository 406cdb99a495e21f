"""Tables of one's own, from training to evaluation and transfer, and what is wrong with bad ones."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from sparsebert import results
from sparsebert.cli import app
from sparsebert.tickets.ticket import Ticket
from tests.cli.tiny import QUICK, refused, save, sentences

pytest.importorskip("transformers")
pytest.importorskip("accelerate")
pytest.importorskip("sklearn")


def classes(folder: Path, names: tuple[str, str] = ("train.csv", "dev.csv")) -> list[str]:
    """Two tables of three classes, and the options that name them."""
    for offset, name in enumerate(names):
        rows = [f"{('no', 'yes')[label]},{text}" for text, label in sentences(offset)]
        (folder / name).write_text("\n".join(["answer,review", *rows, "maybe,the film"]) + "\n")
    files = ["--train-file", str(folder / names[0]), "--validation-file", str(folder / names[1])]
    return [*files, "--text-columns", "review", "--label-column", "answer"]


@pytest.fixture
def model(bert: Path) -> list[str]:
    return ["--model", str(bert), *QUICK]


class TestClasses:
    def test_a_ticket_is_found_and_its_model_evaluated(
        self, model: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        own, out = classes(tmp_path), tmp_path / "run"
        asked = ["--task", "reviews", "--method", "random", "--sparsity", "0.5", "--out", str(out)]
        assert app.main(["train", *model, *own, *asked]) == 0
        (row,) = results.read(out / "log.jsonl", "round")
        assert row["task"] == "reviews"
        assert set(row["metrics"]) == {"accuracy", "macro_f1"}
        labels = json.loads((out / "model" / "config.json").read_text())["id2label"]
        assert labels == {"0": "maybe", "1": "no", "2": "yes"}
        rows_file = tmp_path / "eval.jsonl"
        there = ["--model", str(out), "--json", str(rows_file)]
        assert app.main(["eval", *there, *own]) == 0
        # The trained model knows the labels: the file it was trained on is not asked for again.
        assert app.main(["eval", *there, *own[2:]]) == 0
        assert [each["metrics"] for each in results.read(rows_file, "eval")] == [row["metrics"]] * 2

    def test_a_changed_file_does_not_go_on_where_another_was(
        self, model: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        own = classes(tmp_path)
        asked = ["train", *model, *own, "--method", "dense", "--out", str(tmp_path / "run")]
        assert app.main(asked) == 0
        with (tmp_path / "train.csv").open("a") as file:
            file.write("yes,the plot is fine\n")
        assert "holds a run with names.data.train 'train.csv (sha256:" in refused(capsys, *asked)

    @pytest.mark.parametrize(
        "command",
        [
            ["prune", "--output", "ticket"],
            ["eval"],
            ["train", "--task", "reviews"],
            ["transfer", "--ticket", "ticket", "--tasks", "own"],
        ],
        ids=lambda command: command[0],
    )
    def test_the_folder_of_built_in_tasks_does_not_apply(
        self, bert: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], command: list[str]
    ) -> None:
        asked = [*command, "--model", str(bert), "--data", str(tmp_path), *classes(tmp_path)]
        assert "--data applies only with a built-in task: omit it" in refused(capsys, *asked)

    def test_it_is_a_task_of_the_transfer_too(
        self, model: list[str], data: Path, tmp_path: Path, bert: Path
    ) -> None:
        ticket = tmp_path / "ticket"
        assert app.main(["prune", "--model", str(bert), "--output", str(ticket)]) == 0
        asked = ["--ticket", str(ticket), "--tasks", "sst2,reviews", "--out", str(tmp_path / "matrix")]
        own = classes(tmp_path)
        assert app.main(["transfer", *model, "--data", str(data), *own, *asked]) == 0
        assert (tmp_path / "matrix" / "ticket" / "reviews" / "seed-0" / "log.jsonl").exists()


class TestLabels:
    """Labels of tables as people write them, and labels that a checkpoint names or orders otherwise."""

    def run(self, model: list[str], own: list[str], out: Path, *options: str) -> int:
        return app.main(["train", *model, *own, "--method", "dense", "--out", str(out), *options])

    def test_the_classes_are_printed_with_their_counts_before_training(
        self, model: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert self.run(model, classes(tmp_path), tmp_path / "run") == 0
        lines = capsys.readouterr().out.splitlines()
        assert lines[:2] == [
            "own, train: 49 examples: maybe 1, no 24, yes 24",
            "own, validation: 49 examples: maybe 1, no 24, yes 24",
        ]

    def test_dirty_labels_are_refused_or_dropped_and_counted(
        self, model: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        own = classes(tmp_path)
        train = tmp_path / "train.csv"
        clean = train.read_text()
        train.write_text(clean + "Yes,a film\n")
        line = refused(capsys, "train", *model, *own, "--out", str(tmp_path / "run"))
        assert "'yes' (24 rows of " in line
        assert "'Yes' (1 row of " in line
        train.write_text(clean + ",a film\nyes ,\n")
        line = refused(capsys, "train", *model, *own, "--out", str(tmp_path / "run"))
        assert "train.csv:51: nothing in column answer; " in line
        assert self.run(model, own, tmp_path / "run", "--drop-empty") == 0
        out = capsys.readouterr().out
        assert "own, train: dropped 2 rows without a text or a label" in out
        assert "own, train: 49 examples: maybe 1, no 24, yes 24" in out

    def test_listed_classes_are_the_outputs_in_this_order(
        self, model: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        own, out = classes(tmp_path), tmp_path / "run"
        assert self.run(model, own, out, "--labels", "yes, no,maybe") == 0
        labels = json.loads((out / "model" / "config.json").read_text())["id2label"]
        assert labels == {"0": "yes", "1": "no", "2": "maybe"}
        assert "holds a run with names.data.labels 'yes, no, maybe'" in refused(
            capsys, "train", *model, *own, "--method", "dense", "--out", str(out)
        )

    def test_a_trained_model_with_other_names_is_evaluated_by_a_map(
        self, model: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """The same sentences with other labels have the same metrics; without the map they are refused."""
        own, out, rows = classes(tmp_path), tmp_path / "run", tmp_path / "rows"
        assert self.run(model, own, out) == 0
        names = {"maybe": "2", "no": "0", "yes": "1"}
        lines = [line.split(",") for line in (tmp_path / "dev.csv").read_text().splitlines()]
        (tmp_path / "numbers.csv").write_text(
            "".join(f"{names.get(label, label)},{text}\n" for label, text in lines)
        )
        there = ["--model", str(out), *own[4:], "--json", str(rows)]
        numbers = ["--validation-file", str(tmp_path / "numbers.csv")]
        capsys.readouterr()
        line = refused(capsys, "eval", *there, *numbers)
        assert "must be one of maybe, no, yes, got '0'; name the label that is meant (--label-map)" in line
        assert app.main(["eval", *there, *own[2:4]]) == 0
        for pairs in ("0=no,1=yes,2=maybe", "2=0, 0=1, 1=2"):
            assert app.main(["eval", *there, *numbers, "--label-map", pairs]) == 0
        first, *others = [row["metrics"] for row in results.read(rows, "eval")]
        assert others == [first, first]

    def test_another_order_of_a_checkpoint_of_a_built_in_task(
        self, bert: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """A model of SST-2 whose outputs are swapped is the same model under a map, in every command."""
        import torch
        import transformers

        there, out = ["--task", "sst2", "--data", str(data)], tmp_path / "run"
        assert (
            app.main(["train", *there, "--model", str(bert), *QUICK, "--method", "dense", "--out", str(out)])
            == 0
        )
        swapped = transformers.AutoModelForSequenceClassification.from_pretrained(out / "model")
        with torch.no_grad():
            for each in swapped.classifier.parameters():
                each.copy_(each.flip(0))
        swapped.config.id2label, swapped.config.label2id = {0: "POS", 1: "NEG"}, {"POS": 0, "NEG": 1}
        swapped.save_pretrained(tmp_path / "swapped")
        transformers.AutoTokenizer.from_pretrained(bert).save_pretrained(tmp_path / "swapped")
        capsys.readouterr()
        wrong = ["--model", str(tmp_path / "swapped")]
        assert "labels (config.id2label): POS, NEG; sst2 expects" in refused(capsys, "eval", *there, *wrong)
        mapped, rows = [*wrong, "--label-map", "negative=NEG,positive=POS"], tmp_path / "rows"
        assert app.main(["eval", *there, "--model", str(out), "--json", str(rows)]) == 0
        assert app.main(["eval", *there, *mapped, "--json", str(rows)]) == 0
        one, other = [row["metrics"] for row in results.read(rows, "eval")]
        assert one == other
        ticket = ["--output", str(tmp_path / "ticket"), "--method", "snip", "--sparsity", "0.5"]
        assert app.main(["prune", *there, *mapped, *ticket]) == 0
        again = ["train", *there, *mapped, *QUICK, "--method", "dense", "--out", str(tmp_path / "again")]
        assert app.main(again) == 0
        labels = json.loads((tmp_path / "again" / "model" / "config.json").read_text())["id2label"]
        assert labels == {"0": "negative", "1": "positive"}
        capsys.readouterr()
        assert app.main(again) == 0
        assert "nothing to do" in capsys.readouterr().out
        assert "names.model_labels" in refused(capsys, *[each for each in again if each not in mapped[2:]])

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            (["--labels", "yes,yes"], "--labels must be different names"),
            (["--labels", ","], "--labels must be different names"),
            (["--labels", "yes,,no"], "--labels must be different names"),
            (["--labels", "yes,no"], "label of own must be one of yes, no, got 'maybe'"),
            (["--label-map", "yes"], "--label-map must be pairs"),
            (["--label-map", "yes=a,yes=b"], "--label-map must be pairs"),
            (["--label-map", "yep=YES"], "'yep' is not a label of own: maybe, no, yes"),
            (["--regression", "--labels", "yes,no"], "labels of a regression are scores"),
        ],
    )
    def test_values_that_do_not_fit_are_refused(
        self,
        model: list[str],
        tmp_path: Path,
        capsys: pytest.CaptureFixture[str],
        options: list[str],
        message: str,
    ) -> None:
        own = classes(tmp_path)
        assert message in refused(capsys, "train", *model, *own, "--out", str(tmp_path / "run"), *options)

    def test_a_map_needs_a_trained_head(
        self, there: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        arguments = ["train", "--task", "sst2", *there, "--out", str(tmp_path / "run"), "--sparsity", "0.5"]
        line = refused(capsys, *arguments, "--label-map", "negative=NEG,positive=POS")
        assert (
            "has no trained head for sst2; expected a SequenceClassification model; omit the label map"
            in line
        )

    @pytest.mark.parametrize(
        ("option", "condition"),
        [
            (["--labels", "a,b"], "--train-file or --validation-file"),
            (["--drop-empty"], "--train-file or --validation-file"),
            (["--label-map", "a=b"], "--task"),
        ],
    )
    def test_a_ticket_without_a_task_has_no_labels(
        self,
        bert: Path,
        tmp_path: Path,
        capsys: pytest.CaptureFixture[str],
        option: list[str],
        condition: str,
    ) -> None:
        arguments = ["prune", "--model", str(bert), "--output", str(tmp_path / "ticket"), *option]
        assert f"{option[0]} applies only with {condition}: omit it" in refused(capsys, *arguments)

    @pytest.mark.parametrize("option", [["--labels", "yes,no"], ["--drop-empty"]])
    def test_a_built_in_task_has_its_labels(
        self, there: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], option: list[str]
    ) -> None:
        arguments = ["train", "--task", "sst2", *there, "--out", str(tmp_path / "run"), *option]
        assert f"{option[0]} applies only with --train-file or --validation-file" in refused(
            capsys, *arguments
        )


def test_scores_of_pairs_from_json_lines(model: list[str], tmp_path: Path) -> None:
    for offset, name in enumerate(("train.jsonl", "dev.jsonl")):
        rows = [
            {"a": text, "b": "the film", "score": label + i / 100}
            for i, (text, label) in enumerate(sentences(offset))
        ]
        (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    own = ["--train-file", str(tmp_path / "train.jsonl"), "--validation-file", str(tmp_path / "dev.jsonl")]
    own += ["--text-columns", "a,b", "--label-column", "score", "--regression"]
    out = tmp_path / "run"
    assert app.main(["train", *model, *own, "--method", "dense", "--out", str(out)]) == 0
    (row,) = results.read(out / "log.jsonl", "round")
    assert (row["task"], set(row["metrics"])) == ("own", {"pearson", "spearman"})
    rows_file = tmp_path / "eval.jsonl"
    assert app.main(["eval", "--model", str(out), *own[2:], "--json", str(rows_file)]) == 0
    (found,) = results.read(rows_file, "eval")
    assert found["metrics"] == row["metrics"]


def pairs_of_scores(folder: Path, top: float = 5.0) -> list[str]:
    """Pairs like STS-B's, with a made-up score from 0 to ``top``, and the options that name them."""
    for offset, name in enumerate(("train.csv", "dev.csv")):
        rows = [
            f"{text},the film is good,{top * (label + i % 7 / 7) / 2:.3f}"
            for i, (text, label) in enumerate(sentences(offset))
        ]
        (folder / name).write_text("\n".join(["a,b,score", *rows]) + "\n")
    files = ["--train-file", str(folder / "train.csv"), "--validation-file", str(folder / "dev.csv")]
    return [*files, "--text-columns", "a,b", "--label-column", "score", "--regression"]


def test_static_model_pruning_learns_scores_by_one_label_word(
    tokenizer: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Static Model Pruning on STS-B, with made-up scores: a mask alone makes a word's logit the score."""
    from safetensors.torch import load_file

    language_model, out = save(tmp_path / "mlm", tokenizer, "BertForMaskedLM"), tmp_path / "run"
    own = pairs_of_scores(tmp_path)
    asked = ["--model", str(language_model), *QUICK, "--steps", "60", *own]
    method = ["--method", "smp", "--sparsity", "0.5", "--regularisation", "0"]
    words = ["--label-words", "good", "--out", str(out)]
    assert app.main(["train", *asked, *method, *words, "--choose-every", "10"]) == 0
    (row,) = results.read(out / "log.jsonl", "round")
    assert (row["sparsity"], set(row["metrics"])) == (0.5, {"pearson", "spearman"})
    assert row["metrics"]["pearson"] > 0.5
    ticket = Ticket.load(out / "ticket.safetensors")
    masks = {f"bert.{key}.weight": mask for key, mask in ticket.masks.items()}
    start, trained = (load_file(each / "model.safetensors") for each in (language_model, out / "model"))
    for name, weight in start.items():
        assert trained[name].equal(weight.masked_fill(~masks[name], 0) if name in masks else weight)
    rows_file = tmp_path / "eval.jsonl"
    assert app.main(["eval", "--model", str(out), *own[2:], "--json", str(rows_file)]) == 0
    (found,) = results.read(rows_file, "eval")
    assert found["metrics"] == row["metrics"]
    taught = [*method, "--label-words", "good", "--teacher", str(out), "--out", str(tmp_path / "taught")]
    assert app.main(["train", *asked, *taught]) == 0
    bad = ["train", *asked, *method, "--label-words", "good,bad"]
    assert "own needs 1 label word, got 2: good,bad" in refused(capsys, *bad)


class TestRefusals:
    @pytest.mark.parametrize(
        ("train", "validation", "message"),
        [
            (["text,klass", "a,1"], ["text,label", "a,1"], "train.csv:1: no column 'label'"),
            (["words,label", "a,1"], ["text,label", "a,1"], "train.csv:1: no column 'text'"),
            (
                ["text,label", "a,1", "b,0"],
                ["text,label", "a,1", "b,2"],
                "dev.csv:3: label of own must be one of 0, 1, got '2'",
            ),
            (
                ["text,label", "a,1", "b"],
                ["text,label", "a,1"],
                "train.csv:3: expected 2 columns as in line 1, got 1",
            ),
            (["text,label"], ["text,label", "a,1"], "train.csv: no examples"),
            ([], ["text,label", "a,1"], "train.csv: no examples"),
            (["text,label", "a,1", "b,1"], ["text,label", "a,1"], "all 2 examples have the label 1"),
            (["text,label", "a,1", "b,0"], ["text,label"], "dev.csv: no examples"),
            (["text,label", '"a,1', "b,0"], ["text,label", "a,1"], "train.csv:2: not CSV"),
        ],
    )
    def test_what_is_wrong_with_a_table_is_said_by_file_and_line(
        self,
        capsys: pytest.CaptureFixture[str],
        model: list[str],
        tmp_path: Path,
        train: list[str],
        validation: list[str],
        message: str,
    ) -> None:
        for name, lines in (("train.csv", train), ("dev.csv", validation)):
            (tmp_path / name).write_text("".join(f"{line}\n" for line in lines))
        files = ["--train-file", str(tmp_path / "train.csv")]
        files += ["--validation-file", str(tmp_path / "dev.csv"), "--out", str(tmp_path / "run")]
        assert message in refused(capsys, "train", *model, *files, "--sparsity", "0.5")
        assert not (tmp_path / "run").exists()

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ([], "--task is missing: pass one of sst2"),
            (["--task", "reviews"], "unknown task 'reviews'"),
            (["--validation-file", "{dev}"], "--train-file is missing"),
            (["--train-file", "{dev}"], "--validation-file is missing"),
            (["--train-file", "/nowhere.csv", "--validation-file", "{dev}"], "/nowhere.csv"),
            (
                ["--train-file", "{dev}", "--validation-file", "{dev}", "--task", "sst2"],
                "choose another name",
            ),
            (["--train-file", "{dev}", "--validation-file", "{dev}", "--text-columns", "a,b,c"], "got 3"),
            (["--train-file", "{model}", "--validation-file", "{dev}"], "must end in .tsv, .csv, .jsonl or"),
            (
                ["--train-file", "{dev}", "--validation-file", "{dev}", "--regression"],
                "must be a finite number, got",
            ),
        ],
        ids=lambda value: " ".join(value) if isinstance(value, list) else "",
    )
    def test_what_is_missing_is_named(
        self,
        capsys: pytest.CaptureFixture[str],
        model: list[str],
        tmp_path: Path,
        options: list[str],
        message: str,
    ) -> None:
        (tmp_path / "dev.csv").write_text("text,label\nthe film,good\na film,bad\n")
        (tmp_path / "a.model").write_text("")
        options = [each.format(dev=tmp_path / "dev.csv", model=tmp_path / "a.model") for each in options]
        out = ["--sparsity", "0.5", "--out", str(tmp_path / "run")]
        assert message in refused(capsys, "train", *model, *options, *out)
        assert not (tmp_path / "run").exists()

    def test_labels_that_the_trained_model_has_not(
        self, capsys: pytest.CaptureFixture[str], model: list[str], tmp_path: Path
    ) -> None:
        own = classes(tmp_path)
        asked = ["--method", "dense", "--out", str(tmp_path / "run")]
        assert app.main(["train", *model, *own, *asked]) == 0
        capsys.readouterr()
        (tmp_path / "other.csv").write_text("answer,review\nyes,the film\nnever,the plot\n")
        there = ["--model", str(tmp_path / "run"), "--validation-file", str(tmp_path / "other.csv"), *own[4:]]
        line = refused(capsys, "eval", *there)
        assert "other.csv:3: label of own must be one of maybe, no, yes, got 'never'" in line
