"""``train --teacher``: classes, scores, spans and several tasks; and teachers that know something else."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from sparsebert import results
from sparsebert.cli import app
from tests.cli.tiny import QUICK, SHAPE, SPECIAL, WORDS, refused, save, sentences, write_squad

transformers = pytest.importorskip("transformers")
pytest.importorskip("accelerate")
pytest.importorskip("sklearn")

LABELS = {
    "sst2": ("negative", "positive"),
    "cola": ("unacceptable", "acceptable"),
    "mrpc": ("not_equivalent", "equivalent"),
}
HALF = ["--sparsity", "0.5"]


def teacher_of(folder: Path, tokenizer: Any, labels: tuple[str, ...], **changes: Any) -> Path:
    names = {"id2label": dict(enumerate(labels)), "label2id": {name: i for i, name in enumerate(labels)}}
    return save(folder, tokenizer, "BertForSequenceClassification", **names, **changes)


@pytest.fixture
def teacher(tmp_path: Path, tokenizer: Any) -> str:
    return str(teacher_of(tmp_path / "teacher", tokenizer, LABELS["sst2"]))


def only_round(run: Path) -> dict[str, Any]:
    (row,) = results.read(run / "log.jsonl", "round")
    return row


class TestOneTask:
    def test_a_folder_of_a_model(self, asked: list[str], teacher: str, tmp_path: Path) -> None:
        method = ["--method", "smp", "--distill-weight", "0.9", "--distill-temperature", "3"]
        assert app.main(["train", *asked, *HALF, *method, "--teacher", teacher]) == 0
        found = only_round(tmp_path / "run")["distillation"]
        assert (found["weight"], found["temperature"]) == (0.9, 3.0)
        assert found["teachers"]["sst2"].startswith("sha256:")
        assert app.main(["train", *asked, *HALF, *method, "--teacher", teacher]) == 0  # only read

    def test_contrastive_pruning_takes_it_for_the_fine_tuned_model_too(
        self, capsys: pytest.CaptureFixture[str], asked: list[str], teacher: str, tmp_path: Path
    ) -> None:
        cap = ["train", *asked, *HALF, "--method", "cap", "--negatives", "20", "--label-weight", "3"]
        assert "method cap contrasts with a fine-tuned model too" in refused(capsys, *cap)
        assert not (tmp_path / "run").exists()
        assert app.main([*cap, "--teacher", teacher]) == 0
        row = only_round(tmp_path / "run")
        assert row["sparsity"] == pytest.approx(0.5)
        assert (row["distillation"]["weight"], row["distillation"]["temperature"]) == (0.9, 2.0)

    @pytest.mark.parametrize(
        ("options", "expected"),
        [
            ([], (0.9, 1.0, 0.1, 0)),
            (["--distill-weight", "0.5", "--warmup-steps", "2"], (0.5, 1.0, None, 2)),
            (["--distill-temperature", "2", "--warmup-ratio", "0"], (0.9, 2.0, 0.0, 0)),
        ],
    )
    def test_structured_contrastive_pruning_has_the_settings_of_its_script(
        self,
        asked: list[str],
        teacher: str,
        tmp_path: Path,
        options: list[str],
        expected: tuple[float | None, ...],
    ) -> None:
        method = ["--method", "cap-structured", "--step", "0.5", "--negatives", "20", "--batches", "2"]
        assert app.main(["train", *asked, *HALF, *method, "--teacher", teacher, *options]) == 0
        run = json.loads((tmp_path / "run" / "run.json").read_text())
        taught, training = run["distillation"], run["training"]
        assert expected == (
            taught["weight"],
            taught["temperature"],
            training["warmup_ratio"],
            training["warmup_steps"],
        )

    def test_a_run_is_a_teacher_and_one_by_seeds_has_one_for_each(
        self, capsys: pytest.CaptureFixture[str], there: list[str], tmp_path: Path
    ) -> None:
        task, dense = ["--task", "sst2", *there, *QUICK], tmp_path / "dense"
        assert app.main(["train", *task, "--method", "dense", "--seeds", "1,2", "--out", str(dense)]) == 0
        movement = ["train", *task, *HALF, "--method", "movement"]
        one = [
            *movement,
            "--teacher",
            str(dense / "seed-1"),
            "--seeds",
            "1,2",
            "--out",
            str(tmp_path / "one"),
        ]
        each = [*movement, "--teacher", str(dense), "--seeds", "1,2", "--out", str(tmp_path / "each")]
        assert app.main([*one, "--dense", str(dense)]) == 0  # judged by the labels' dense model, made before
        assert app.main(each) == 0
        teachers = {
            (out, seed): only_round(tmp_path / out / f"seed-{seed}")["distillation"]["teachers"]["sst2"]
            for out in ("one", "each")
            for seed in (1, 2)
        }
        assert teachers["one", 1] == teachers["one", 2] == teachers["each", 1] != teachers["each", 2]
        message = refused(capsys, *movement, "--teacher", str(dense), "--seeds", "3")
        assert "holds no run of seed 3; its seeds: 1, 2" in message

    def test_scores(self, tokenizer: Any, bert: Path, tmp_path: Path) -> None:
        for offset, name in enumerate(("train.csv", "dev.csv")):
            rows = [f"{text},{label + index / 100}" for index, (text, label) in enumerate(sentences(offset))]
            (tmp_path / name).write_text("\n".join(["text,label", *rows]) + "\n")
        files = ["--train-file", str(tmp_path / "train.csv"), "--validation-file", str(tmp_path / "dev.csv")]
        teacher = save(tmp_path / "teacher", tokenizer, "BertForSequenceClassification", num_labels=1)
        arguments = [*files, "--regression", "--model", str(bert), *QUICK, "--out", str(tmp_path / "run")]
        assert app.main(["train", *arguments, "--method", "dense", "--teacher", str(teacher)]) == 0
        assert only_round(tmp_path / "run")["distillation"]["weight"] == 0.5

    def test_spans(self, tokenizer: Any, bert: Path, tmp_path: Path) -> None:
        write_squad(tmp_path / "data" / "squad-v1.1", ("good",))
        teacher = save(tmp_path / "teacher", tokenizer, "BertForQuestionAnswering")
        arguments = ["--model", str(bert), "--data", str(tmp_path / "data"), "--out", str(tmp_path / "run")]
        arguments += ["--task", "squad", "--max-length", "24", *QUICK, *HALF, "--method", "movement"]
        assert app.main(["train", *arguments, "--teacher", str(teacher)]) == 0
        assert only_round(tmp_path / "run")["loss"] > 0


def test_several_tasks_have_a_teacher_each_or_none(
    capsys: pytest.CaptureFixture[str], asked: list[str], teacher: str, tokenizer: Any, tmp_path: Path
) -> None:
    other = teacher_of(tmp_path / "other", tokenizer, LABELS["cola"])
    several = [*asked, "--method", "multi-task", "--also", "cola,wikitext-2", "--step", "0.5", *HALF]
    assert app.main(["train", *several, "--teacher", f"sst2={teacher},cola={other}"]) == 0
    rows = results.read(tmp_path / "run" / "log.jsonl", "round")
    assert [set(row["distillation"]["teachers"]) for row in rows] == [{"sst2", "cola"}] * 2
    for names, message in (
        (f"{teacher},sst2={teacher}", "names two teachers for sst2"),
        (
            f"mrpc={teacher}",
            "a teacher needs a task of the run, sst2 or cola or wikitext-2, got a teacher for mrpc",
        ),
        (f"wikitext-2={teacher}", "wikitext-2 is language modelling, which takes no teacher"),
    ):
        out = ["--out", str(tmp_path / "refused")]
        assert message in refused(capsys, "train", *several, *out, "--teacher", names)
    assert not (tmp_path / "refused").exists()


class TestRefusals:
    def refusal(self, capsys: pytest.CaptureFixture[str], asked: list[str], *arguments: str) -> str:
        line = refused(capsys, "train", *asked, *HALF, *arguments)
        assert not Path(asked[asked.index("--out") + 1]).exists()
        return line

    @pytest.mark.parametrize(
        ("labels", "message"),
        [
            (("positive", "negative"), "label order (config.id2label): positive, negative; sst2 expects neg"),
            (("unacceptable", "acceptable"), "labels (config.id2label): unacceptable, acceptable; sst2 exp"),
            (
                ("LABEL_0", "LABEL_1"),
                "has placeholders (LABEL_0, LABEL_1), so the order of its labels is unknown",
            ),
            (("negative", "neutral", "positive"), "sst2 needs a model with 2 outputs, got 3"),
        ],
    )
    def test_labels(
        self,
        capsys: pytest.CaptureFixture[str],
        asked: list[str],
        tokenizer: Any,
        tmp_path: Path,
        labels: tuple[str, ...],
        message: str,
    ) -> None:
        other = teacher_of(tmp_path / "other", tokenizer, labels)
        line = self.refusal(capsys, asked, "--teacher", str(other))
        assert message in line
        assert f"teacher {other}: " in line

    @pytest.mark.parametrize("words", [(*WORDS, "extra"), (*SPECIAL, *reversed(WORDS[5:]))])
    def test_a_vocabulary(
        self, capsys: pytest.CaptureFixture[str], asked: list[str], tmp_path: Path, words: tuple[str, ...]
    ) -> None:
        tokenizer = transformers.BertTokenizer(vocab={word: index for index, word in enumerate(words)})
        other = teacher_of(tmp_path / "other", tokenizer, LABELS["sst2"], vocab_size=len(words))
        assert "its vocabulary differs from the student's, for example in '" in self.refusal(
            capsys, asked, "--teacher", str(other)
        )

    def test_one_of_another_template(
        self, capsys: pytest.CaptureFixture[str], tokenizer: Any, data: Path, tmp_path: Path
    ) -> None:
        model = save(tmp_path / "mlm", tokenizer, "BertForMaskedLM")
        asked = ["--task", "sst2", "--model", str(model), "--data", str(data), *QUICK]
        words = ["--method", "smp", "--label-words", "bad,good"]
        plain = [*asked, "--out", str(tmp_path / "plain")]
        assert app.main(["train", *plain, *HALF, *words]) == 0
        taught = [*asked, *words, "--teacher", str(tmp_path / "plain")]
        assert app.main(["train", *taught, *HALF, "--out", str(tmp_path / "taught")]) == 0
        capsys.readouterr()
        other = [*taught, "--out", str(tmp_path / "refused"), "--template", "{0} is [MASK]"]
        message = "its texts had the template None, the student's have '{0} is [MASK]'"
        assert message in self.refusal(capsys, other)

    def test_what_is_no_trained_model_of_the_task(
        self, capsys: pytest.CaptureFixture[str], asked: list[str], bert: Path, tmp_path: Path
    ) -> None:
        assert "has no trained head for sst2" in self.refusal(capsys, asked, "--teacher", str(bert))
        assert "/nowhere" in self.refusal(capsys, asked, "--teacher", "/nowhere/teacher")

    def test_one_that_takes_fewer_tokens(
        self, capsys: pytest.CaptureFixture[str], asked: list[str], tokenizer: Any, tmp_path: Path
    ) -> None:
        short = teacher_of(tmp_path / "short", tokenizer, LABELS["sst2"], max_position_embeddings=16)
        line = self.refusal(capsys, asked, "--teacher", str(short))
        assert "it takes at most 16 tokens, but examples have up to 128" in line

    def test_one_that_tells_two_texts_apart_where_the_model_does_not(
        self, capsys: pytest.CaptureFixture[str], tokenizer: Any, tmp_path: Path
    ) -> None:
        config = transformers.DistilBertConfig(
            vocab_size=len(WORDS), dim=20, n_heads=2, n_layers=1, hidden_dim=30
        )
        transformers.DistilBertModel(config).save_pretrained(tmp_path / "distil")
        transformers.DistilBertTokenizer(vocab=tokenizer.get_vocab()).save_pretrained(tmp_path / "distil")
        folder = tmp_path / "data" / "glue" / "MRPC"
        folder.mkdir(parents=True)
        rows = "".join(f"{i % 2}\t1\t2\tthe film\tthe plot\n" for i in range(8))
        for name in ("train.tsv", "dev.tsv"):
            (folder / name).write_text("Quality\t#1 ID\t#2 ID\t#1 String\t#2 String\n" + rows)
        other = teacher_of(tmp_path / "other", tokenizer, LABELS["mrpc"])
        there = ["--model", str(tmp_path / "distil"), "--data", str(tmp_path / "data")]
        asked = ["--task", "mrpc", *there, "--out", str(tmp_path / "run"), *QUICK]
        line = self.refusal(capsys, asked, "--teacher", str(other))
        assert "reads segments (token_type_ids)" in line

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            (["--distill-weight", "0.9"], "--distill-weight requires --teacher"),
            (["--distill-temperature", "2"], "--distill-temperature requires --teacher"),
            (["--teacher", "x", "--distill-weight", "0"], "distill_weight must be in (0, 1], got 0.0"),
            (["--teacher", "x", "--distill-temperature", "-1"], "distill_temperature must be positive"),
            (
                ["--task", "wikitext-2", "--teacher", "x"],
                "wikitext-2 is language modelling, which takes no teacher",
            ),
        ],
    )
    def test_options(
        self, capsys: pytest.CaptureFixture[str], asked: list[str], options: list[str], message: str
    ) -> None:
        assert message in self.refusal(capsys, asked, *options)

    def test_another_teacher_for_a_run_that_has_begun(
        self,
        capsys: pytest.CaptureFixture[str],
        asked: list[str],
        teacher: str,
        tokenizer: Any,
        tmp_path: Path,
    ) -> None:
        begun = ["train", *asked, *HALF, "--method", "random"]
        assert app.main([*begun, "--teacher", teacher]) == 0
        capsys.readouterr()
        other = teacher_of(tmp_path / "other", tokenizer, LABELS["sst2"], initializer_range=0.3)
        line = refused(capsys, *begun, "--teacher", str(other))
        assert "holds a run with distillation.teachers.sst2 'sha256:" in line


def test_shapes_of_a_teacher_are_its_own(asked: list[str], tokenizer: Any, tmp_path: Path) -> None:
    larger = SHAPE | {"hidden_size": 40, "num_hidden_layers": 3}
    teacher = teacher_of(tmp_path / "large", tokenizer, LABELS["sst2"], **larger)
    assert app.main(["train", *asked, *HALF, "--method", "gradual", "--teacher", str(teacher)]) == 0
