"""``sparsebert convert``: tickets from one format to another, there and back."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sparsebert import results
from sparsebert.checkpoints.weight_files import SPARSE_WEIGHTS
from sparsebert.cli import app
from sparsebert.interop import read_ticket
from sparsebert.planning import layer_timing
from sparsebert.pruning import prune
from sparsebert.tickets.ticket import Ticket
from tests.cli.tiny import WORDS, refused, save

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
    assert app.main(["convert", ours, theirs, "--to", to, "--model", str(bert)]) == 0
    assert read_ticket(theirs, model) == ticket
    assert app.main(["convert", theirs, back, "--model", str(bert)]) == 0
    assert Ticket.load(back) == ticket


def test_a_mask_pt_needs_no_model(ticket: Ticket, tmp_path: Path) -> None:
    ours, theirs = str(tmp_path / "ticket.safetensors"), tmp_path / "mask.pt"
    assert app.main(["convert", ours, str(theirs), "--to", "bert-tickets"]) == 0
    state = torch.load(theirs, weights_only=True)
    key = next(iter(ticket.masks))
    assert torch.equal(state[f"bert.{key}.weight_mask"], ticket.masks[key].float())


def test_a_model_with_zeros_and_back(
    capsys: pytest.CaptureFixture[str], ticket: Ticket, tokenizer: Any, tmp_path: Path
) -> None:
    dense = save(tmp_path / "dense", tokenizer, "BertForSequenceClassification")
    pruned, back = tmp_path / "pruned", tmp_path / "back"
    into = ["--to", "model", "--model", str(dense), "--json", str(tmp_path / "results.jsonl")]
    assert app.main(["convert", str(tmp_path / "ticket.safetensors"), str(pruned), *into]) == 0
    assert "70.00% sparse (density 30.00%)" in capsys.readouterr().out
    loaded = transformers.AutoModelForSequenceClassification.from_pretrained(pruned)
    before = transformers.AutoModelForSequenceClassification.from_pretrained(dense)
    assert torch.equal(loaded.classifier.weight, before.classifier.weight)
    assert (pruned / "tokenizer_config.json").exists()
    assert app.main(["convert", str(pruned), str(back)]) == 0
    assert Ticket.load(back) == ticket
    (row,) = results.read(tmp_path / "results.jsonl", "convert")
    assert (row["to"], row["ticket"]["sparsity"]) == ("model", pytest.approx(0.7))


class TestSparseFolders:
    @pytest.fixture
    def dense(self, tokenizer: Any, tmp_path: Path) -> Path:
        return save(tmp_path / "dense", tokenizer, "BertForSequenceClassification")

    @pytest.fixture
    def sparse(self, ticket: Ticket, dense: Path, tmp_path: Path) -> Path:
        """A sparse folder, made of the ticket; with what it takes as results.jsonl."""
        made = tmp_path / "sparse"
        asked = [
            "--model",
            str(dense),
            "--batch",
            "3",
            "--seq",
            "8",
            "--json",
            str(tmp_path / "results.jsonl"),
        ]
        convert = ["convert", str(tmp_path / "ticket.safetensors"), str(made), "--to", "sparse"]
        assert app.main([*convert, *asked]) == 0
        return made

    def test_loads_with_head_tokenizer_and_card(self, sparse: Path, dense: Path, ticket: Ticket) -> None:
        loaded = transformers.AutoModelForSequenceClassification.from_pretrained(sparse)
        expected = transformers.AutoModelForSequenceClassification.from_pretrained(dense)
        ticket.apply_(expected)
        tokens = torch.arange(1, 9)[None]
        torch.testing.assert_close(loaded(tokens).logits, expected(tokens).logits)
        assert transformers.AutoTokenizer.from_pretrained(sparse).vocab_size == len(WORDS)
        assert (sparse / "README.md").read_text().count("import sparsebert") == 1

    def test_without_timing_the_formats(
        self, dense: Path, ticket: Ticket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(layer_timing, "paired", lambda *_: pytest.fail("a timing"))
        made = tmp_path / "untimed"
        convert = ["convert", str(tmp_path / "ticket.safetensors"), str(made), "--to", "sparse"]
        assert app.main([*convert, "--model", str(dense), "--no-measure"]) == 0
        layers = json.loads((made / "config.json").read_text())["quantization_config"]["layers"]
        assert not any(layer["measured_us"] for layer in layers.values())

    @pytest.mark.parametrize("option", ["--measure", "--no-measure"])
    def test_is_the_only_form_whose_formats_are_timed(
        self, option: str, dense: Path, ticket: Ticket, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        for to in ("model", "smp", "sparsebert"):
            convert = ["convert", str(tmp_path / "ticket.safetensors"), str(tmp_path / "made"), "--to", to]
            line = f"{option} applies to --to sparse, which chooses formats; omit it with --to {to}"
            assert line in refused(capsys, *convert, "--model", str(dense), option)

    def test_the_folder_records_how_the_model_is_to_compute(
        self, dense: Path, ticket: Ticket, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        made = tmp_path / "tolerant"
        convert = ["convert", str(tmp_path / "ticket.safetensors"), str(made), "--model", str(dense)]
        options = ["--no-measure", "--tolerance", "bf16", "--no-fuse"]
        assert app.main([*convert, "--to", "sparse", *options]) == 0
        config = json.loads((made / "config.json").read_text())["quantization_config"]
        assert (config["tolerance"], config["fuse"], config["way"]) == ("bf16", False, "layers")
        convert[2] = str(tmp_path / "other")
        for option in (["--tolerance", "bf16"], ["--no-fuse"], ["--fuse"]):
            line = f"{option[0]} applies only with --to sparse, without --portable: omit it"
            assert line in refused(capsys, *convert, "--to", "model", *option)
            assert line in refused(capsys, *convert, "--to", "sparse", "--portable", *option)

    def test_bytes_before_and_after(
        self, sparse: Path, dense: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        (row,) = results.read(tmp_path / "results.jsonl", "convert")
        before, after = row["before"], row["after"]
        for file, found in ((dense / "model.safetensors", before), (sparse / SPARSE_WEIGHTS, after)):
            assert found["disk"] == file.stat().st_size
        assert after["disk"] < before["disk"]
        # Equal in memory where layers this small are faster dense: that is measured, and so may be either.
        assert after["weights"] <= before["weights"]
        assert before["activations"] > 0
        assert [(found["batch"], found["length"]) for found in (before, after)] == [(3, 8)] * 2
        assert row["to"] == "sparse"

    def test_and_back_to_a_dense_folder(
        self, sparse: Path, ticket: Ticket, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        capsys.readouterr()
        back = tmp_path / "back"
        assert app.main(["convert", str(sparse), str(back), "--to", "model"]) == 0
        shown = capsys.readouterr().out
        assert all(
            words in shown
            for words in ("weights on disk", "weights in memory", "activations, batch 1, 128 tokens")
        )
        config = transformers.AutoConfig.from_pretrained(back)
        assert not hasattr(config, "quantization_config")
        assert Ticket.from_model(transformers.AutoModel.from_pretrained(back)) == ticket

    def test_of_a_compacted_model_in_either_form(
        self, dense: Path, model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        prune(model, "magnitude", sparsity=0.5, granularity="head+neuron").save(tmp_path / "units")
        steps = (("units", "first", "sparse"), ("first", "second", "sparse"), ("second", "back", "model"))
        monkeypatch.chdir(tmp_path)
        for source, target, to in steps:
            named = ["--model", str(dense)] if source == "units" else []
            assert app.main(["convert", source, target, "--to", to, *named]) == 0
        tokens, auto = torch.arange(1, 9)[None], transformers.AutoModelForSequenceClassification
        answers = [auto.from_pretrained(target)(tokens).logits for _, target, _ in steps]
        torch.testing.assert_close(answers[1:], [answers[0]] * 2)
        compacted = [auto.from_pretrained(target).bert.encoder.layer[0] for _, target, _ in steps]
        widths = [layer.intermediate.dense.out_features for layer in compacted]
        assert widths[0] == widths[1] < widths[2] == 30
        assert not hasattr(transformers.AutoConfig.from_pretrained("back"), "quantization_config")

    def test_the_ticket_of_a_compacted_model_is_of_the_shapes_it_came_from(
        self, dense: Path, model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        units = prune(model, "magnitude", sparsity=0.5, granularity="head+neuron")
        units.save(tmp_path / "units")
        monkeypatch.chdir(tmp_path)
        assert app.main(["convert", "units", "first", "--to", "sparse", "--model", str(dense)]) == 0
        assert app.main(["convert", "first", "back"]) == 0
        back = Ticket.load("back")
        back.check(model)
        assert back.sparsity == pytest.approx(units.sparsity, abs=0.02)

    def test_a_folder_with_zeros_needs_no_ticket(self, sparse: Path, tmp_path: Path) -> None:
        back, again = tmp_path / "back", tmp_path / "again"
        assert app.main(["convert", str(sparse), str(back), "--to", "model"]) == 0
        assert app.main(["convert", str(back), str(again), "--to", "sparse"]) == 0
        same = [each / SPARSE_WEIGHTS for each in (sparse, again)]
        assert same[0].read_bytes() == same[1].read_bytes()

    def test_what_records_say_is_on_the_card(self, sparse: Path, tmp_path: Path) -> None:
        rows_file, made = tmp_path / "eval.jsonl", tmp_path / "with-results"
        found = {"task": "sst2", "metrics": {"accuracy": 0.875}, "sparsity": None}
        results.append(rows_file, [results.stamp("eval", found)])
        convert = ["convert", str(sparse), str(made), "--to", "sparse", "--results", str(rows_file)]
        assert app.main(convert) == 0
        assert "sst2: accuracy 0.8750" in (made / "README.md").read_text()

    def test_nothing_is_left_of_a_conversion_that_fails(
        self, sparse: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        out = tmp_path / "out"
        line = refused(capsys, "convert", str(sparse), str(out), "--to", "model", "--seq", "9999")
        assert "length 9999 exceeds the 512 positions of the model" in line
        assert not out.exists()

    def test_what_makes_it_a_model_of_sentence_transformers_comes_along(
        self, sparse: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        (sparse / "1_Pooling").mkdir()
        (sparse / "1_Pooling" / "config.json").write_text("{}")
        modules = sparse / "modules.json"
        modules.write_text('[{"path": ""}, {"path": "1_Pooling"}, {"path": "2_Normalize"}]')
        made = tmp_path / "made"
        assert app.main(["convert", str(sparse), str(made), "--to", "sparse"]) == 0
        assert (made / "modules.json").read_text() == modules.read_text()
        assert (made / "1_Pooling" / "config.json").read_text() == "{}"

    @pytest.mark.parametrize(
        ("modules", "message"),
        [
            ('{"path": 1}', "modules.json must list the modules of sentence-transformers"),
            (
                '[{"path": "../outside"}]',
                "modules.json: the path of a module must be a folder beside the file, got '../outside'",
            ),
            ('[{"path": ".."}]', "beside the file, got '..'"),
            ('[{"path": "/"}]', "beside the file, got '/'"),
        ],
    )
    def test_modules_that_are_none_or_lie_elsewhere(
        self, sparse: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], modules: str, message: str
    ) -> None:
        (tmp_path / "outside").mkdir()
        (sparse / "modules.json").write_text(modules)
        assert message in refused(capsys, "convert", str(sparse), str(tmp_path / "no"), "--to", "sparse")
        assert not (tmp_path / "no").exists()

    def test_a_sparse_folder_that_is_cut_off(
        self, sparse: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        file = sparse / SPARSE_WEIGHTS
        file.write_bytes(file.read_bytes()[:2000])
        line = refused(capsys, "convert", str(sparse), str(tmp_path / "out"), "--to", "model")
        assert "is truncated or not a safetensors file" in line


class TestSuperTicketsOfSeveralTasks:
    @pytest.fixture
    def lists(self, tmp_path: Path) -> Path:
        file = tmp_path / "heads_to_mask.json"
        file.write_text(json.dumps({"sst": {"0": [1]}, "cola": {"1": [0]}}))
        return file

    def test_the_command_names_one(
        self, capsys: pytest.CaptureFixture[str], lists: Path, bert: Path, tmp_path: Path
    ) -> None:
        asked = ["convert", str(lists), str(tmp_path / "out"), "--model", str(bert)]
        line = refused(capsys, *asked)
        assert "holds the lists of tasks sst, cola; choose one with `sparsebert convert --task`" in line
        assert "no lists of task rte; its tasks: sst, cola" in refused(capsys, *asked, "--task", "rte")
        assert not (tmp_path / "out").exists()
        assert app.main([*asked, "--task", "cola"]) == 0
        ticket = Ticket.load(tmp_path / "out")
        assert ticket.masks["encoder.layer.0.attention.self.query"].all()
        assert not ticket.masks["encoder.layer.1.attention.self.query"][:10].any()

    def test_other_sources_have_none(
        self, capsys: pytest.CaptureFixture[str], ticket: Ticket, bert: Path, tmp_path: Path
    ) -> None:
        asked = [str(tmp_path / "out"), "--task", "cola"]
        line = refused(capsys, "convert", str(tmp_path / "ticket.safetensors"), *asked)
        assert "holds one ticket; a task applies only to the JSON files of Super Tickets" in line
        assert "the folder of a model holds one ticket" in refused(capsys, "convert", str(bert), *asked)


class TestRefusals:
    def test_a_source_that_is_not_there(self, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
        line = refused(capsys, "convert", str(tmp_path / "missing"), str(tmp_path / "out"))
        assert f"source {tmp_path / 'missing'} does not exist" in line

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (["--to", "smp"], "--to smp requires --model"),
            (["--to", "sparse"], "--to sparse requires --model"),
            (["--to", "sparse", "--model", "{bert}"], "out already exists; choose another"),
            (["--to", "smq"], "did you mean 'smp'"),
            (["--to", "model", "--model", "{bert}"], "out already exists; choose another"),
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
        assert "pass the model that the ticket belongs to" in refused(capsys, *asked)
        assert "holds 100 bytes; the 12 encoder matrices" in refused(capsys, *asked, "--model", str(bert))
        assert not (tmp_path / "out").exists()

    def test_a_model_folder_without_weights(
        self, capsys: pytest.CaptureFixture[str], bert: Path, tmp_path: Path
    ) -> None:
        (tmp_path / "empty").mkdir()
        (tmp_path / "empty" / "config.json").write_bytes((bert / "config.json").read_bytes())
        line = refused(capsys, "convert", str(tmp_path / "empty"), str(tmp_path / "out"))
        assert "model.safetensors" in line
