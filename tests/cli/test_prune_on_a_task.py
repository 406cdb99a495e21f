"""``sparsebert prune`` calibrated on the training texts of a task, with labels where a method reads them."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import pytest

from sparsebert import results
from sparsebert.cli import app
from sparsebert.lottery.find_runs import load_ticket
from sparsebert.tickets.ticket import Ticket
from tests.cli.tiny import BAD, GOOD, OTHER, QUICK, WORDS, refused, save

transformers = pytest.importorskip("transformers")


def reviews(count: int = 96) -> list[tuple[str, int]]:
    """Different sentences, of which one word decides the label."""
    return [
        (
            f"{' '.join(OTHER[(i + j * (1 + i // 5)) % 5] for j in range(2 + i % 6))} "
            f"{(BAD, GOOD)[i % 2][i % 3]}",
            i % 2,
        )
        for i in range(count)
    ]


@pytest.fixture(scope="module")
def sst2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("glue")
    (folder / "SST-2").mkdir()
    lines = [f"{text}\t{label}" for text, label in reviews()]
    for name in ("train.tsv", "dev.tsv"):
        (folder / "SST-2" / name).write_text("\n".join(["sentence\tlabel", *lines]) + "\n")
    return folder


def classifier(folder: Path, tokenizer: Any, labels: tuple[str, str] = ("negative", "positive")) -> Path:
    names = dict(enumerate(labels))
    ids = {label: index for index, label in names.items()}
    return save(
        folder, tokenizer, "BertForSequenceClassification", num_labels=2, id2label=names, label2id=ids
    )


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, tokenizer: Any) -> Path:
    return classifier(tmp_path_factory.mktemp("models") / "classifier", tokenizer)


@pytest.fixture
def asked(trained: Path, sst2: Path, tmp_path: Path) -> list[str]:
    return [
        *("prune", "--model", str(trained), "--task", "sst2", "--data", str(sst2)),
        *("--sparsity", "0.5", "--output", str(tmp_path / "pruned")),
    ]


def test_a_task_calibrates_as_its_texts_do(asked: list[str], tmp_path: Path) -> None:
    assert app.main([*asked, "--method", "alps", "--json", str(tmp_path / "r.jsonl")]) == 0
    ticket = Ticket.load(tmp_path / "pruned" / "ticket.safetensors")
    texts = tmp_path / "texts.txt"
    texts.write_text("\n".join(text for text, _ in reviews()) + "\n")
    at = asked.index("--task")
    from_texts = [*asked[:at], "--texts", str(texts), *asked[at + 4 : -1], str(tmp_path / "other")]
    assert app.main([*from_texts, "--method", "alps"]) == 0
    other = Ticket.load(tmp_path / "other" / "ticket.safetensors")
    assert ticket.metadata["calibration"]["texts"] == len(reviews())
    assert ticket.metadata["calibration"]["tokens"] == other.metadata["calibration"]["tokens"]
    assert ticket.overlap(other) > 0.99
    (record,) = results.read(tmp_path / "r.jsonl")
    assert record["task"] == "sst2"


def test_obert_prunes_by_the_loss_of_one_example_at_a_time(asked: list[str], tmp_path: Path) -> None:
    options = ["--scope", "matrix", "--damping", "1e-4", "--recomputations", "2"]
    assert app.main([*asked, "--method", "obert", *options]) == 0
    model = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "pruned")
    ticket = load_ticket(tmp_path / "pruned", model)
    assert Ticket.from_model(model) == ticket
    assert set(ticket.layer_sparsity.values()) == {0.5}
    assert ticket.metadata["options"]["damping"] == 1e-4
    assert ticket.metadata["options"]["recomputations"] == 2
    assert ticket.metadata["calibration"]["texts"] == len(reviews())


def test_batches_of_obert_are_a_choice(asked: list[str], tmp_path: Path) -> None:
    tickets = []
    for size in ("1", "16"):
        output = str(tmp_path / size)
        assert app.main([*asked[:-1], output, "--method", "obert", "--batch-size", size]) == 0
        tickets.append(Ticket.load(tmp_path / size / "ticket.safetensors"))
    assert tickets[0] != tickets[1]


def test_fisher_units_reads_the_labels_of_a_task_where_the_model_has_its_head(
    asked: list[str], bert: Path, tmp_path: Path
) -> None:
    command = [*asked, "--method", "fisher-units", "--granularity", "head+neuron"]
    assert app.main(command) == 0
    assert Ticket.load(tmp_path / "pruned" / "ticket.safetensors").metadata["loss"] == "labels"
    command[command.index("--model") + 1] = str(bert)
    command[command.index("--output") + 1] = str(tmp_path / "without-head")
    assert app.main(command) == 0
    assert Ticket.load(tmp_path / "without-head" / "ticket.safetensors").metadata["loss"] == "outputs"


def test_labels_are_brought_into_the_order_of_the_models_outputs(
    asked: list[str], tokenizer: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    swapped = classifier(tmp_path / "swapped", tokenizer, ("positive", "negative"))
    model = transformers.AutoModelForSequenceClassification.from_pretrained(swapped)
    for parameter in model.classifier.parameters():
        parameter.data = parameter.data.flip(0)
    model.save_pretrained(swapped)
    command = [*asked, "--method", "obert"]
    assert app.main(command) == 0
    command[command.index("--model") + 1] = str(swapped)
    command[command.index("--output") + 1] = str(tmp_path / "from-swapped")
    message = refused(capsys, *command)
    assert "the model's label order (config.id2label): positive, negative; sst2 expects" in message
    assert app.main([*command, "--label-map", "negative=negative,positive=positive"]) == 0
    tickets = [Ticket.load(tmp_path / name / "ticket.safetensors") for name in ("pruned", "from-swapped")]
    assert tickets[0] == tickets[1]


def test_a_table_of_ones_own_needs_no_other_to_evaluate_on(asked: list[str], tmp_path: Path) -> None:
    table = tmp_path / "own.csv"
    rows = [f"{text},{('bad', 'good')[label]}" for text, label in reviews()]
    table.write_text("\n".join(["text,label", *rows]) + "\n")
    at = asked.index("--task")
    command = [*asked[:at], "--train-file", str(table), *asked[at + 4 :]]
    assert app.main([*command, "--method", "obert", "--label-map", "bad=negative,good=positive"]) == 0


def test_the_weights_are_trained_on_the_task_by_the_command_that_is_printed(
    asked: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("accelerate")
    assert app.main([*asked, "--method", "sparsegpt"]) == 0
    (line,) = (x for x in capsys.readouterr().out.splitlines() if x.startswith("train its weights: "))
    command = shlex.split(line.removeprefix("train its weights: sparsebert "))
    assert app.main([*command, "--out", str(tmp_path / "run"), *QUICK]) == 0
    (row,) = results.read(tmp_path / "run" / "log.jsonl", "round")
    assert row["sparsity"] == pytest.approx(0.5, abs=0.01)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--method", "alps", "--texts", "README.md"], "--texts applies only with unlabelled texts"),
        (["--method", "alps", "--count", "999"], "999 texts are needed, got 96"),
        (["--method", "alps", "--batches", "3"], "--batches applies only with a method that scores"),
        (["--method", "alps", "--max-length", "9999"], "max_length must be at most 512"),
        (["--method", "obert", "--reproduce", "layer"], "reproduce does not apply to method obert"),
        (["--method", "obert", "--scope", "layers"], "scope of obert"),
    ],
    ids=str,
)
def test_bad_input_is_one_line(
    asked: list[str], capsys: pytest.CaptureFixture[str], tmp_path: Path, more: list[str], message: str
) -> None:
    assert message in refused(capsys, *asked, *more)
    assert not (tmp_path / "pruned").exists()


def test_obert_says_what_it_needs(
    asked: list[str], bert: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = [*asked, "--method", "obert"]
    command[command.index("--model") + 1] = str(bert)
    assert "has no trained head for sst2, and method obert needs its loss" in refused(capsys, *command)
    texts = tmp_path / "texts.txt"
    texts.write_text("\n".join(WORDS[5:]) + "\n")
    at = command.index("--task")
    message = refused(capsys, *command[:at], "--texts", str(texts), *command[at + 4 :])
    assert "method obert needs labels: pass the examples of a task, not texts" in message
