"""Every command finds weights under other names, and refuses a model that lacks some."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch.nn.utils import prune as torch_prune

from sparsebert.bert import structure
from sparsebert.cli import app
from sparsebert.pruning import prune
from sparsebert.tickets.ticket import Ticket
from tests.checkpoints.stored import prefixed, without, write
from tests.cli.tiny import QUICK, refused, save

transformers = pytest.importorskip("transformers")
pytest.importorskip("accelerate")
pytest.importorskip("sklearn")

LABELS = {"id2label": {0: "negative", 1: "positive"}, "label2id": {"negative": 0, "positive": 1}}
LACKING = "bert.encoder.layer.1.output.dense.weight"


@pytest.fixture(scope="module")
def classifier(tokenizer: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(
        tmp_path_factory.mktemp("models") / "plain", tokenizer, "BertForSequenceClassification", **LABELS
    )


@pytest.fixture(scope="module")
def renamed(classifier: Path) -> Path:
    state = prefixed("module._orig_mod.model.")(load_file(classifier / "model.safetensors"))
    return write(classifier.parent / "renamed", classifier, state)


@pytest.fixture(scope="module")
def lacking(classifier: Path) -> Path:
    return write(
        classifier.parent / "lacking",
        classifier,
        without(LACKING)(load_file(classifier / "model.safetensors")),
    )


@pytest.fixture(scope="module")
def ticket(classifier: Path) -> Path:
    path = classifier.parent / "ticket.safetensors"
    prune(transformers.AutoModel.from_pretrained(classifier), "magnitude", sparsity=0.5).save(path)
    return path


TRAIN = "train --task sst2 --data DATA --out OUT --method one-shot --sparsity 0.5 QUICK"
COMMANDS = {
    "prune": "prune --model MODEL --output OUT",
    "prune on a task": "prune --model MODEL --output OUT --method snip --task sst2 --data DATA",
    "train": f"{TRAIN} --model MODEL",
    "train with a teacher": f"{TRAIN} --model PLAIN --teacher MODEL",
    "eval": "eval --model MODEL --task sst2 --data DATA",
    "transfer": "transfer --model MODEL --ticket sst2=TICKET --tasks sst2 --out OUT QUICK --data DATA",
    "convert a model": "convert MODEL OUT",
    "convert to model": "convert TICKET OUT --to model --model MODEL",
    "convert to sparse": "convert TICKET OUT --to sparse --model MODEL",
    "bench": "bench --model MODEL --ticket TICKET --vs eager --budget 1",
    "bench of a sparsity": "bench --model MODEL --sparsity 0.5 --vs eager --budget 1",
}


def words(command: str, **values: Path) -> list[str]:
    """Split a command, with values in place of the words in capitals."""
    parts: list[str] = []
    for part in command.split():
        if part == "QUICK":
            parts += QUICK
        else:
            for old, new in values.items():
                part = part.replace(old, str(new))
            parts.append(part)
    return parts


@pytest.mark.parametrize("name", COMMANDS)
def test_a_model_that_lacks_a_matrix(
    name: str,
    capsys: pytest.CaptureFixture[str],
    classifier: Path,
    lacking: Path,
    ticket: Path,
    data: Path,
    tmp_path: Path,
) -> None:
    out = tmp_path / "out"
    values = {"MODEL": lacking, "PLAIN": classifier, "TICKET": ticket, "DATA": data, "OUT": out}
    line = refused(capsys, *words(COMMANDS[name], **values))
    assert f"lack {LACKING.removeprefix('bert.')}" in line.replace("bert.", "")
    assert not out.exists() or out.is_dir()


class TestUnderOtherNames:
    def test_prune(self, renamed: Path, classifier: Path, tmp_path: Path) -> None:
        for model, name in ((renamed, "a"), (classifier, "b")):
            assert app.main(["prune", "--model", str(model), "--output", str(tmp_path / name)]) == 0
        assert Ticket.load(tmp_path / "a") == Ticket.load(tmp_path / "b")

    def test_eval(
        self, renamed: Path, classifier: Path, data: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        outputs = []
        for model in (renamed, classifier):
            assert app.main(["eval", "--model", str(model), "--task", "sst2", "--data", str(data)]) == 0
            lines = capsys.readouterr().out.replace(model.name, "").splitlines()
            outputs.append([line for line in lines if not line.startswith("used ")])  # seconds differ
        assert outputs[0] == outputs[1]
        assert any("accuracy" in line for line in outputs[0])

    @pytest.mark.parametrize("to", ["model", "sparse"])
    def test_convert(self, renamed: Path, classifier: Path, ticket: Path, tmp_path: Path, to: str) -> None:
        import sparsebert  # noqa: F401

        answers = []
        for model, name in ((renamed, "a"), (classifier, "b")):
            options = ["--to", to, "--model", str(model)]
            assert app.main(["convert", str(ticket), str(tmp_path / name), *options]) == 0
            loaded = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / name)
            with torch.no_grad():
                answers.append(loaded.eval()(torch.arange(2, 10)[None]).logits)
        assert torch.allclose(answers[0], answers[1], atol=1e-6)

    def test_train(self, renamed: Path, classifier: Path, data: Path, tmp_path: Path) -> None:
        for model, name in ((renamed, "a"), (classifier, "b")):
            values = {"MODEL": model, "DATA": data, "OUT": tmp_path / name}
            assert app.main(words(COMMANDS["train"], **values)) == 0
        ours, theirs = (load_file(tmp_path / name / "model" / "model.safetensors") for name in "ab")
        assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_a_model_saved_while_torch_pruned_it_is_a_ticket_and_weights(
    classifier: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = transformers.AutoModelForSequenceClassification.from_pretrained(classifier)
    for key in structure(model).linears[2:]:
        torch_prune.random_unstructured(model.bert.get_submodule(key), "weight", 0.6)
    with torch.no_grad():  # A kept weight that is zero: only the mask says that it is kept.
        kept = model.bert.encoder.layer[1].output.dense
        kept.weight_orig[kept.weight_mask.bool()] = 0
    write(tmp_path / "pruned", classifier, prefixed("module.")(model.state_dict()))
    monkeypatch.chdir(tmp_path)
    assert app.main(["convert", "pruned", "ticket"]) == 0
    ticket = Ticket.load(tmp_path / "ticket")
    assert ticket == Ticket.from_torch_prune(model)
    assert app.main(["convert", "pruned", "dense", "--to", "model"]) == 0
    dense = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "dense")
    with torch.no_grad():
        tokens = torch.arange(2, 10)[None]
        assert torch.equal(dense.eval()(tokens).logits, model.eval()(tokens).logits)
