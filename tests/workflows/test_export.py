"""Folders that ``export_model`` and `convert` write: portable ones, embeddings, cards and modules.json."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open

from sparsebert import Ticket, prune
from sparsebert.checkpoints.weight_files import SPARSE_WEIGHTS
from sparsebert.cli import app
from sparsebert.hf.sentence_modules import DENSE_TYPE, SPARSE_TYPE
from sparsebert.workflows.export import export_model
from tests.cli.tiny import SHAPE, WORDS, refused
from tests.sparsify.models import sparse_layers

transformers = pytest.importorskip("transformers")
TOKENS = torch.arange(1, 9)[None]
THEIR_CARD = (
    "---\nlibrary_name: sentence-transformers\ntags:\n- mine\n---\n\n# My model\n\n## Usage\n\nAs always.\n"
)
EMBEDDING = "embeddings.word_embeddings.weight"


@pytest.fixture(scope="module")
def dense(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of sentence-transformers: encoder, tokenizer, pooling and a card."""
    folder = tmp_path_factory.mktemp("models") / "dense"
    torch.manual_seed(0)
    config = transformers.BertConfig(vocab_size=len(WORDS), **SHAPE)
    transformers.BertModel(config).eval().save_pretrained(folder)
    vocabulary = {word: index for index, word in enumerate(WORDS)}
    transformers.BertTokenizer(vocab=vocabulary).save_pretrained(folder)
    modules = [
        {"idx": 0, "name": "0", "path": "", "type": DENSE_TYPE},
        {"idx": 1, "name": "1", "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
    ]
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "1_Pooling").mkdir()
    pooling = {"word_embedding_dimension": config.hidden_size, "pooling_mode_mean_tokens": True}
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
    (folder / "README.md").write_text(THEIR_CARD)
    return folder


@pytest.fixture(scope="module")
def ticket(dense: Path) -> Ticket:
    return prune(transformers.AutoModel.from_pretrained(dense), "magnitude", sparsity=0.7)


def masked(dense: Path, ticket: Ticket) -> Any:
    return ticket.apply_(transformers.AutoModel.from_pretrained(dense))


def answer(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(TOKENS).last_hidden_state


def dtypes(file: Path) -> dict[str, str]:
    with safe_open(file, framework="pt") as opened:
        return {name: opened.get_slice(name).get_dtype() for name in opened.keys()}  # noqa: SIM118


def types(folder: Path) -> list[str]:
    return [module["type"] for module in json.loads((folder / "modules.json").read_text())]


class TestPortable:
    @pytest.fixture
    def folder(self, dense: Path, ticket: Ticket, tmp_path: Path) -> Path:
        ticket.save(tmp_path / "ticket")
        convert = ["convert", str(tmp_path / "ticket"), str(tmp_path / "out"), "--to", "sparse", "--portable"]
        assert app.main([*convert, "--model", str(dense)]) == 0
        return tmp_path / "out"

    def test_it_loads_without_sparsebert(self, folder: Path, dense: Path, ticket: Ticket) -> None:
        code = (
            "import sys, torch, transformers\n"
            "model = transformers.AutoModel.from_pretrained(sys.argv[1])\n"
            "torch.save(model(torch.arange(1, 9)[None]).last_hidden_state.detach(), sys.argv[2])\n"
            "assert not any(name.startswith('sparsebert') for name in sys.modules)\n"
        )
        command = [sys.executable, "-c", code, str(folder), str(folder / "answer.pt")]
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        torch.testing.assert_close(torch.load(folder / "answer.pt"), answer(masked(dense, ticket)))

    def test_its_values_are_dense_and_its_zeros_the_ticket(self, folder: Path, ticket: Ticket) -> None:
        loaded = transformers.AutoModel.from_pretrained(folder)
        assert not sparse_layers(loaded)
        assert Ticket.from_model(loaded) == ticket
        assert "sparsebert" not in (folder / "config.json").read_text()
        assert types(folder)[0] == DENSE_TYPE

    def test_the_card_claims_no_more(self, folder: Path) -> None:
        text = (folder / "README.md").read_text()
        assert text.startswith(THEIR_CARD)
        assert "70.00% of the prunable weights" in text
        assert "The files hold dense values and load without sparsebert." in text
        assert "import sparsebert" not in text

    def test_from_a_sparse_folder(self, dense: Path, ticket: Ticket, tmp_path: Path) -> None:
        export_model(str(dense), tmp_path / "sparse", ticket, sparse=True)
        export_model(str(tmp_path / "sparse"), tmp_path / "out", sparse=True, portable=True)
        assert types(tmp_path / "sparse")[0] == SPARSE_TYPE
        assert types(tmp_path / "out")[0] == DENSE_TYPE
        loaded = transformers.AutoModel.from_pretrained(tmp_path / "out")
        torch.testing.assert_close(answer(loaded), answer(masked(dense, ticket)))
        assert (tmp_path / "out" / "README.md").read_text().count("## Pruned with sparsebert") == 1

    def test_of_a_model_without_a_card(self, dense: Path, ticket: Ticket, tmp_path: Path) -> None:
        plain = tmp_path / "plain"
        transformers.AutoModel.from_pretrained(dense).save_pretrained(plain)
        export_model(str(plain), tmp_path / "out", ticket, sparse=True, portable=True)
        text = (tmp_path / "out" / "README.md").read_text()
        assert text.startswith("---\nlibrary_name: transformers\ntags:\n- sparsebert")
        assert "# out\n\n70.00% of the prunable weights" in text
        export_model(str(plain), tmp_path / "model", ticket, sparse=False)
        assert not (tmp_path / "model" / "README.md").exists()


class TestEmbeddings:
    @pytest.mark.parametrize(
        "options", [{"sparse": True}, {"sparse": True, "portable": True}, {"sparse": False}]
    )
    def test_are_stored_in_bf16_and_loaded_in_fp32(
        self, options: dict[str, bool], dense: Path, ticket: Ticket, tmp_path: Path
    ) -> None:
        export_model(str(dense), tmp_path / "out", ticket, embeddings="bf16", **options)
        (file,) = (tmp_path / "out").glob("*.safetensors")
        found = dtypes(file)
        narrow = {name for name, dtype in found.items() if dtype == "BF16"}
        kinds = ("word", "position", "token_type")
        assert narrow == {f"embeddings.{kind}_embeddings.weight" for kind in kinds}
        loaded = transformers.AutoModel.from_pretrained(tmp_path / "out")
        assert loaded.dtype == torch.float32
        expected = masked(dense, ticket)
        with torch.no_grad():
            for name, parameter in expected.named_parameters():
                if name in narrow:
                    parameter.copy_(parameter.bfloat16())
        assert torch.equal(loaded.get_parameter(EMBEDDING), expected.get_parameter(EMBEDDING))
        torch.testing.assert_close(answer(loaded), answer(expected))

    def test_a_loaded_model_is_not_rounded_again(self, dense: Path, ticket: Ticket, tmp_path: Path) -> None:
        export_model(str(dense), tmp_path / "out", ticket, sparse=True, embeddings="float16")
        assert dtypes(tmp_path / "out" / SPARSE_WEIGHTS)[EMBEDDING] == "F16"
        transformers.AutoModel.from_pretrained(tmp_path / "out").save_pretrained(tmp_path / "again")
        assert dtypes(tmp_path / "again" / SPARSE_WEIGHTS)[EMBEDDING] == "F32"

    def test_are_not_widened(self, dense: Path, ticket: Ticket, tmp_path: Path) -> None:
        transformers.AutoModel.from_pretrained(dense).bfloat16().save_pretrained(tmp_path / "bf16")
        export_model(str(tmp_path / "bf16"), tmp_path / "out", ticket, sparse=True, embeddings="fp32")
        assert dtypes(tmp_path / "out" / SPARSE_WEIGHTS)[EMBEDDING] == "BF16"

    @pytest.mark.parametrize("sparse", [True, False])
    def test_values_beyond_the_dtype_are_refused(
        self, dense: Path, ticket: Ticket, tmp_path: Path, sparse: bool
    ) -> None:
        model = transformers.AutoModel.from_pretrained(dense)
        with torch.no_grad():
            model.get_parameter(EMBEDDING)[3, 2] = -7e4
        model.save_pretrained(tmp_path / "large")
        with pytest.raises(ValueError, match=rf"{EMBEDDING} holds 70000, beyond the range of fp16 .*65504"):
            export_model(str(tmp_path / "large"), tmp_path / "out", ticket, sparse=sparse, embeddings="fp16")
        assert sorted(path.name for path in tmp_path.iterdir()) == ["large"]
        export_model(str(tmp_path / "large"), tmp_path / "out", ticket, sparse=sparse, embeddings="bf16")

    def test_a_tied_decoder_stays_tied(self, ticket: Ticket, tmp_path: Path) -> None:
        config = transformers.BertConfig(vocab_size=len(WORDS), **SHAPE)
        transformers.BertForMaskedLM(config).save_pretrained(tmp_path / "mlm")
        for name, options in (("sparse", {"sparse": True}), ("model", {"sparse": False})):
            export_model(str(tmp_path / "mlm"), tmp_path / name, ticket, embeddings="bf16", **options)
            loaded = transformers.AutoModelForMaskedLM.from_pretrained(tmp_path / name)
            words = loaded.bert.embeddings.word_embeddings.weight
            assert loaded.cls.predictions.decoder.weight is words
            assert torch.equal(words, words.bfloat16().float())

    def test_half_the_bytes(self, dense: Path, ticket: Ticket, tmp_path: Path) -> None:
        sizes = []
        for dtype in (None, "bf16"):
            _, after = export_model(str(dense), tmp_path / str(dtype), ticket, sparse=True, embeddings=dtype)
            sizes.append(after.disk)
        embeddings = transformers.AutoModel.from_pretrained(dense).embeddings
        halved = sum(each.numel() * 2 for each in embeddings.parameters() if each.dim() == 2)
        assert sizes[0] - sizes[1] == pytest.approx(halved, abs=100)


class TestCard:
    def test_theirs_stays_with_a_section_of_ours(self, dense: Path, ticket: Ticket, tmp_path: Path) -> None:
        export_model(str(dense), tmp_path / "first", ticket, sparse=True)
        text = (tmp_path / "first" / "README.md").read_text()
        assert text.startswith(THEIR_CARD)
        ours = text.removeprefix(THEIR_CARD)
        assert ours.count("## Pruned with sparsebert") == 1
        assert "70.00% sparse (density 30.00%)" in ours
        assert "import sparsebert" in ours
        assert 'model = SentenceTransformer("first")' in ours
        assert "\n## " not in ours.split("## Pruned with sparsebert")[1]

    def test_the_section_is_renewed(self, dense: Path, ticket: Ticket, tmp_path: Path) -> None:
        export_model(str(dense), tmp_path / "first", ticket, sparse=True)
        card = tmp_path / "first" / "README.md"
        card.write_text(card.read_text() + "\n## Afterwords\n")
        export_model(str(tmp_path / "first"), tmp_path / "second", sparse=True)
        text = (tmp_path / "second" / "README.md").read_text()
        assert text.startswith(THEIR_CARD)
        assert text.count("## Pruned with sparsebert") == 1
        assert text.endswith("\n## Afterwords\n")
        assert 'SentenceTransformer("second")' in text
        assert 'SentenceTransformer("first")' not in text

    @pytest.mark.parametrize("card", ["# Modèle\r\n\r\nrien\r\n".encode(), b"# caf\xe9\n", b""])
    def test_bytes_of_theirs_survive(self, card: bytes, dense: Path, ticket: Ticket, tmp_path: Path) -> None:
        transformers.AutoModel.from_pretrained(dense).save_pretrained(tmp_path / "model")
        (tmp_path / "model" / "README.md").write_bytes(card)
        export_model(str(tmp_path / "model"), tmp_path / "out", ticket, sparse=True)
        assert (tmp_path / "out" / "README.md").read_bytes().startswith(card.rstrip())

    def test_how_much_of_the_whole_model_remains(self, dense: Path, ticket: Ticket, tmp_path: Path) -> None:
        export_model(str(dense), tmp_path / "out", ticket, sparse=True)
        total = sum(each.numel() for each in transformers.AutoModel.from_pretrained(dense).parameters())
        pruned = sum(int((~mask).sum()) for mask in ticket.masks.values())
        text = (tmp_path / "out" / "README.md").read_text()
        assert f"of all {total:,} weights, embeddings included, {total - pruned:,} remain" in text

    def test_what_compaction_removed(self, dense: Path, tmp_path: Path) -> None:
        model = transformers.AutoModel.from_pretrained(dense)
        for granularity, kinds in (("neuron", "neurons"), ("head", "heads or their dimensions")):
            units = prune(model, "magnitude", sparsity=0.5, granularity=granularity)
            export_model(str(dense), tmp_path / granularity, units, sparse=True)
            text = (tmp_path / granularity / "README.md").read_text()
            assert f"; compaction removed {kinds}: " in text

    def test_modules_json_keeps_the_other_modules(self, dense: Path, ticket: Ticket, tmp_path: Path) -> None:
        export_model(str(dense), tmp_path / "out", ticket, sparse=True)
        assert types(tmp_path / "out") == [SPARSE_TYPE, types(dense)[1]]
        assert (tmp_path / "out" / "1_Pooling" / "config.json").exists()
        export_model(str(tmp_path / "out"), tmp_path / "back", sparse=False)
        assert types(tmp_path / "back") == types(dense)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--to", "model", "--portable"], "--portable applies to --to sparse, not to --to model"),
        (["--portable"], "--portable applies to --to sparse, not to --to sparsebert"),
        (["--embeddings", "bf16"], "--embeddings applies to --to model or sparse, not to --to sparsebert"),
        (["--to", "sparse", "--embeddings", "int8"], "unknown dtype in --embeddings 'int8'"),
        (["--to", "sparse", "--embeddings", "fp64"], "unknown dtype in --embeddings 'fp64'"),
    ],
)
def test_options_that_do_not_apply(
    arguments: list[str],
    message: str,
    dense: Path,
    ticket: Ticket,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    ticket.save(tmp_path / "ticket")
    convert = ["convert", str(tmp_path / "ticket"), str(tmp_path / "out"), "--model", str(dense)]
    assert message in refused(capsys, *convert, *arguments)
    assert not (tmp_path / "out").exists()


def test_no_tokenizer_is_made_up(dense: Path, tmp_path: Path) -> None:
    source = tmp_path / "source"
    shutil.copytree(dense, source, ignore=shutil.ignore_patterns("tokenizer*"))
    export_model(str(source), tmp_path / "out", sparse=False)
    assert not list((tmp_path / "out").glob("tokenizer*"))


def test_the_size_on_disk_is_that_of_the_weights(dense: Path, ticket: Ticket, tmp_path: Path) -> None:
    """Neither other files of a training run nor a second copy of the weights count."""
    source = tmp_path / "source"
    shutil.copytree(dense, source)
    for name in ("training_args.bin", "pytorch_model.bin"):
        (source / name).write_bytes(bytes(100))
    before, _ = export_model(str(source), tmp_path / "out", ticket, sparse=False)
    assert before.disk == (source / "model.safetensors").stat().st_size
