"""Token classification from training to predictions, on files of one's own and by name."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from sparsebert import results
from sparsebert.cli import app
from tests.cli.tiny import BAD, GOOD, OTHER, QUICK, refused

pytest.importorskip("accelerate")
pytest.importorskip("sklearn")


def tag(word: str) -> str:
    return "B-GOOD" if word in GOOD else "I-BAD" if word in BAD else "O"


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Columns to train on and JSON lines to evaluate on; a word is good, bad or neither."""
    folder = tmp_path_factory.mktemp("own")
    train, dev = folder / "train.conll", folder / "dev.jsonl"
    draw = random.Random(0)
    texts = [[draw.choice(GOOD + BAD + OTHER * 2) for _ in range(6)] for _ in range(120)]
    train.write_text("\n\n".join("\n".join(f"{word} {tag(word)}" for word in words) for words in texts))
    rows = ({"tokens": words, "tags": [tag(word) for word in words]} for words in texts[:20])
    dev.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return ["--tags", "--train-file", str(train), "--validation-file", str(dev)]


@pytest.fixture(scope="module")
def run(own: list[str], bert: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A one-shot ticket whose model has learnt the tags."""
    out = tmp_path_factory.mktemp("runs") / "run"
    ticket = ["--method", "one-shot", "--sparsity", "0.3", "--out", str(out)]
    assert app.main(["train", "--model", str(bert), *own, *ticket, *QUICK, "--steps", "60"]) == 0
    return out


def evaluated(own: list[str], run: Path) -> list[str]:
    return ["eval", "--model", str(run), *own[:1], *own[3:]]


def test_a_run_is_evaluated_by_its_entities_without_the_training_file(
    own: list[str], run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (logged,) = results.read(run / "log.jsonl", "round")
    assert set(logged["metrics"]) == {"f1", "precision", "recall", "accuracy"}
    assert logged["metrics"]["f1"] > 0.9
    assert logged["chance"]["f1"] == 0.0
    assert 0.5 < logged["chance"]["accuracy"] < 0.8
    config = json.loads((run / "model" / "config.json").read_text())
    assert config["architectures"] == ["BertForTokenClassification"]
    assert list(config["id2label"].values()) == ["B-GOOD", "I-BAD", "O"]
    assert app.main([*evaluated(own, run), "--json", str(tmp_path / "rows.jsonl")]) == 0
    (row,) = results.read(tmp_path / "rows.jsonl", "eval")
    assert row["metrics"] == logged["metrics"]


def test_its_words_are_counted_by_their_tags(
    own: list[str], run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    assert app.main(evaluated(own, run)) == 0
    assert "own, validation: 120 words: B-GOOD 26, I-BAD 23, O 71" in capsys.readouterr().out


def test_its_predictions_are_a_tag_for_each_word(own: list[str], run: Path, tmp_path: Path) -> None:
    file = tmp_path / "predictions.jsonl"
    assert app.main([*evaluated(own, run), "--predictions", str(file)]) == 0
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    assert len(rows) == 20
    assert [len(row["prediction"]) for row in rows] == [len(row["texts"]["tokens"]) for row in rows]
    assert sum(row["prediction"] == row["label"] for row in rows) >= 18
    assert app.main([*evaluated(own, run), "--predictions", str(tmp_path / "predictions.csv")]) == 0
    assert '"[""' in (tmp_path / "predictions.csv").read_text().splitlines()[1]


def test_it_is_robust_to_changes_that_leave_words_in_their_places(
    own: list[str], run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows_file = tmp_path / "rows.jsonl"
    asked = [*evaluated(own, run), "--json", str(rows_file)]
    assert app.main([*asked, "--perturb", "typos,casing"]) == 0
    typos, casing = results.read(rows_file, "robustness")
    assert casing["metrics"] == casing["clean"]  # a lower-case vocabulary
    assert typos["other_answers"] > 0
    assert "shuffle moves or adds words, and own has a tag for each" in refused(
        capsys, *evaluated(own, run), "--perturb", "shuffle"
    )


def test_a_label_map_brings_other_names_into_order(
    own: list[str], run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "named.conll"
    names = {"B-GOOD": "B-FINE", "I-BAD": "I-POOR", "O": "O"}
    rows = [json.loads(line)["tokens"] for line in Path(own[-1]).read_text().splitlines()]
    file.write_text("\n\n".join("\n".join(f"{word} {names[tag(word)]}" for word in words) for words in rows))
    asked = ["eval", "--model", str(run), "--tags", "--validation-file", str(file)]
    message = refused(capsys, *asked)
    assert "tags must be among B-GOOD, I-BAD, O, got" in message
    pairs = "B-FINE=B-GOOD,I-POOR=I-BAD"
    assert app.main([*asked, "--label-map", pairs, "--json", str(tmp_path / "rows.jsonl")]) == 0
    assert app.main([*evaluated(own, run), "--json", str(tmp_path / "rows.jsonl")]) == 0
    mapped, plain = results.read(tmp_path / "rows.jsonl", "eval")
    assert mapped["metrics"] == plain["metrics"]


def test_tickets_transfer_to_it(own: list[str], run: Path, bert: Path, tmp_path: Path) -> None:
    rows_file = tmp_path / "rows.jsonl"
    asked = ["transfer", "--ticket", f"tags={run}", "--tasks", "own", "--model", str(bert), *own, *QUICK]
    assert app.main([*asked, "--out", str(tmp_path / "matrix"), "--json", str(rows_file)]) == 0
    assert [(row["source"], row["metric"]) for row in results.read(rows_file, "transfer")] == [
        ("dense", "f1"),
        ("tags", "f1"),
    ]


@pytest.mark.parametrize("method", ["alps", "obert", "fisher-units"])
def test_it_calibrates_pruning(own: list[str], run: Path, tmp_path: Path, method: str) -> None:
    units = ["--granularity", "neuron"] if method == "fisher-units" else []
    asked = [
        "prune",
        "--model",
        str(run / "model"),
        *own[:3],
        "--method",
        method,
        "--sparsity",
        "0.5",
        *units,
    ]
    assert app.main([*asked, "--output", str(tmp_path / "pruned")]) == 0
    assert app.main(["eval", "--model", str(tmp_path / "pruned"), *own[:1], *own[3:]]) == 0


def test_snip_reads_its_loss(own: list[str], bert: Path, tmp_path: Path) -> None:
    asked = ["prune", "--model", str(bert), *own[:3], "--method", "snip", "--sparsity", "0.5"]
    assert app.main([*asked, "--output", str(tmp_path / "ticket.safetensors")]) == 0


def test_its_texts_heal(own: list[str], run: Path, tmp_path: Path) -> None:
    pruned = tmp_path / "pruned"
    asked = ["prune", "--model", str(run / "model"), *own[:3], "--method", "alps", "--sparsity", "0.5"]
    assert app.main([*asked, "--output", str(pruned)]) == 0
    teacher = ["--teacher", str(run / "model"), "--steps", "2"]
    assert app.main(["heal", str(pruned), *own[:3], *teacher, "--output", str(tmp_path / "healed")]) == 0


def test_label_words_and_teachers(
    own: list[str], run: Path, bert: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = ["train", "--model", str(bert), *own, *QUICK, "--sparsity", "0.5", "--out", str(tmp_path / "smp")]
    message = refused(capsys, *asked, "--method", "smp", "--label-words", "good,bad,film")
    assert "label words need a task with classes, scores or spans; own has a tag for each word" in message
    taught = [*asked[:-1], str(tmp_path / "taught"), "--method", "one-shot", "--teacher", str(run)]
    assert app.main(taught) == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--lm", "masked"], "--lm masked and --tags describe different files: omit one"),
        (["--regression"], "--regression belongs to a table, and --tags reads other files: omit it"),
        (["--doc-stride", "4"], "doc_stride applies to tasks with questions, own has none: omit it"),
    ],
)
def test_options_that_do_not_fit(
    own: list[str],
    bert: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    options: list[str],
    message: str,
) -> None:
    asked = ["train", "--model", str(bert), *own, *QUICK, "--method", "dense", "--out", str(tmp_path / "run")]
    assert message in refused(capsys, *asked, *options)
