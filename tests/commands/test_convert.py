"""`sparsebert convert`: tickets from one format to another, there and back."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sparsebert import cli
from sparsebert.bench import record
from sparsebert.foreign import read_ticket
from sparsebert.pruning import prune
from sparsebert.ticket import Ticket
from tests.commands.tiny import refused, save

transformers = pytest.importorskip("transformers")


@pytest.fixture(scope="module")
def model(bert: Path) -> Any:
    return transformers.AutoModel.from_pretrained(bert)


@pytest.fixture
def ticket(model: Any, tmp_path: Path) -> Ticket:
    """Saved as ticket.safetensors below the test's folder."""
    drawn = prune(model, "random", sparsity=0.7)
    drawn.save(tmp_path / "ticket.safetensors")
    return drawn


@pytest.mark.parametrize("to", ["bert-tickets", "smp", "sparsebert"])
def test_there_and_back(ticket: Ticket, model: Any, bert: Path, tmp_path: Path, to: str) -> None:
    ours, theirs, back = (str(tmp_path / name) for name in ("ticket.safetensors", "theirs", "back"))
    assert cli.main(["convert", ours, theirs, "--to", to, "--model", str(bert)]) == 0
    assert read_ticket(theirs, model) == ticket
    assert cli.main(["convert", theirs, back, "--model", str(bert)]) == 0
    assert Ticket.load(back) == ticket


def test_a_mask_pt_needs_no_model(ticket: Ticket, tmp_path: Path) -> None:
    ours, theirs = str(tmp_path / "ticket.safetensors"), tmp_path / "mask.pt"
    assert cli.main(["convert", ours, str(theirs), "--to", "bert-tickets"]) == 0
    state = torch.load(theirs, weights_only=True)
    key = next(iter(ticket.masks))
    assert torch.equal(state[f"bert.{key}.weight_mask"], ticket.masks[key].float())


def test_a_model_with_zeros_and_back(
    capsys: pytest.CaptureFixture[str], ticket: Ticket, tokenizer: Any, tmp_path: Path
) -> None:
    dense = save(tmp_path / "dense", tokenizer, "BertForSequenceClassification")
    pruned, back = tmp_path / "pruned", tmp_path / "back"
    into = ["--to", "model", "--model", str(dense), "--json", str(tmp_path / "results.jsonl")]
    assert cli.main(["convert", str(tmp_path / "ticket.safetensors"), str(pruned), *into]) == 0
    assert "70.00% sparse (density 30.00%)" in capsys.readouterr().out
    loaded = transformers.AutoModelForSequenceClassification.from_pretrained(pruned)
    before = transformers.AutoModelForSequenceClassification.from_pretrained(dense)
    assert torch.equal(loaded.classifier.weight, before.classifier.weight)
    assert (pruned / "tokenizer_config.json").exists()
    assert cli.main(["convert", str(pruned), str(back)]) == 0
    assert Ticket.load(back) == ticket
    (row,) = record.read(tmp_path / "results.jsonl", "convert")
    assert (row["to"], row["ticket"]["sparsity"]) == ("model", pytest.approx(0.7))


class TestRefusals:
    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (["--to", "smp"], "--to smp needs the model"),
            (["--to", "smq"], "did you mean 'smp'"),
            (["--to", "model", "--model", "{bert}"], "is there already"),
            (["--to", "smp", "--model", "/nowhere/bert"], "/nowhere/bert"),
            (["--json", "/nowhere/at/all.jsonl"], "does not exist"),
        ],
    )
    def test_bad_input_is_one_line_and_what_was_there_stays(
        self,
        capsys: pytest.CaptureFixture[str],
        ticket: Ticket,
        bert: Path,
        tmp_path: Path,
        arguments: list[str],
        message: str,
    ) -> None:
        output = tmp_path / "out"
        output.write_text("before")
        arguments = [each.format(bert=bert) for each in arguments]
        line = refused(capsys, "convert", str(tmp_path / "ticket.safetensors"), str(output), *arguments)
        assert message in line
        assert output.read_text() == "before"

    def test_a_pickle_of_more_than_tensors_is_not_read(
        self, capsys: pytest.CaptureFixture[str], tmp_path: Path
    ) -> None:
        (tmp_path / "mask.pt").write_bytes(pickle.dumps({"a.weight_mask": Path}, protocol=2))
        line = refused(capsys, "convert", str(tmp_path / "mask.pt"), str(tmp_path / "out"))
        assert "mask.pt is refused" in line
        assert not (tmp_path / "out").exists()

    def test_bits_without_their_model_or_for_another(
        self, capsys: pytest.CaptureFixture[str], bert: Path, tmp_path: Path
    ) -> None:
        np.save(tmp_path / "mask.npy", np.zeros(100, np.uint8))
        asked = ["convert", str(tmp_path / "mask.npy"), str(tmp_path / "out")]
        assert "it needs the model it belongs to" in refused(capsys, *asked)
        assert "100 bytes where the 12 encoder matrices" in refused(capsys, *asked, "--model", str(bert))
        assert not (tmp_path / "out").exists()

    def test_a_model_folder_without_weights(
        self, capsys: pytest.CaptureFixture[str], bert: Path, tmp_path: Path
    ) -> None:
        (tmp_path / "empty").mkdir()
        (tmp_path / "empty" / "config.json").write_bytes((bert / "config.json").read_bytes())
        line = refused(capsys, "convert", str(tmp_path / "empty"), str(tmp_path / "out"))
        assert "model.safetensors" in line
