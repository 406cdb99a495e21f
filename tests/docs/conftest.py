"""A tiny model and tiny data under the names that the samples use."""

from __future__ import annotations

import gc
import json
from itertools import permutations
from pathlib import Path

import pytest
import torch

from tests import brief_timings, decoders, rapl

SENTENCES = ("zeros cost nothing now .", "a ticket is one small file .")
LABEL_WORDS = ("terrible", "great", "it", "was")


@pytest.fixture(scope="session")
def materials(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with all that the samples read and no sample makes."""
    folder = tmp_path_factory.mktemp("materials")
    _write_model(folder / "my-model")
    decoders.saved(folder / "gpt2", decoders.gpt2())
    _write_movement_checkpoint(folder / "movement-checkpoint", folder / "my-model")
    _write_data(folder)
    return folder


@pytest.fixture(scope="session")
def products(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what the commands of the pages have written so far, for the pages that read it."""
    return tmp_path_factory.mktemp("products")


@pytest.fixture
def workspace(materials: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A current folder of the test's own, with the materials in it, on a machine that counts its energy."""
    brief_timings.shorten(monkeypatch)
    brief_timings.shorten_ceilings(monkeypatch)
    # As in tests/conftest.py, for each page: the samples import much, and compile models.
    gc.collect()
    gc.freeze()
    rapl.write_domain(tmp_path / "powercap", "0", "package-0")
    rapl.read_from(tmp_path / "powercap", monkeypatch)
    for each in materials.iterdir():
        (tmp_path / each.name).symlink_to(each)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def _write_model(folder: Path) -> None:
    from transformers import BertConfig, BertForMaskedLM, BertTokenizer

    words = sorted({word for sentence in SENTENCES for word in sentence.split()} | set(LABEL_WORDS))
    folder.mkdir()
    (folder / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words]))
    BertTokenizer(str(folder / "vocab.txt")).save_pretrained(folder)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=5 + len(words),
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=128,
        max_position_embeddings=64,
    )
    BertForMaskedLM(config).save_pretrained(folder)


def _write_movement_checkpoint(folder: Path, model_folder: Path) -> None:
    """Write a checkpoint as HF's movement pruning leaves one."""
    from transformers import AutoModel

    from sparsebert.bert import structure

    model = AutoModel.from_pretrained(model_folder)
    state = model.state_dict()
    state |= {f"{key}.mask_scores": state[f"{key}.weight"] for key in structure(model).linears}
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"pruning_method": "topK"}))
    torch.save(state, folder / "pytorch_model.bin")


def _write_data(folder: Path) -> None:
    rows = [(SENTENCES[i % 2], i % 2) for i in range(8)]
    tables = {
        "SST-2": ["sentence\tlabel", *(f"{text}\t{label}" for text, label in rows)],
        "CoLA": [f"gj04\t{label}\t\t{text}" for text, label in rows],
        "MRPC": [
            "Quality\t#1 ID\t#2 ID\t#1 String\t#2 String",
            *(f"{label}\t1\t2\t{text}\t{text}" for text, label in rows),
        ],
    }
    reviews = ["stars,review", *(f"{label},{text}" for text, label in rows)]
    files = {
        f"data/{task}/{split}.tsv": lines for task, lines in tables.items() for split in ("train", "dev")
    }
    files |= {f"data/wikitext-2/wiki.{split}.raw": list(SENTENCES) * 4 for split in ("train", "valid")}
    files |= {"reviews.csv": reviews, "held-out.csv": reviews, "sentences.txt": list(SENTENCES)}
    words = sorted({word for sentence in SENTENCES for word in sentence.split()})
    files |= {"train.txt": list(SENTENCES), "valid.txt": list(SENTENCES)}
    tagged = ["it B-LOC", *(f"{word} O" for word in words), ""] * 4
    files |= {"train.conll": tagged, "dev.conll": tagged}
    files["texts.txt"] = [" ".join(texts) for texts in permutations(words[:6], 4)]
    for name, lines in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("\n".join(lines) + "\n")
