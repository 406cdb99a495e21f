"""Tokenizers that cannot read a text are refused in one line that says what is wrong with which folder."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from sparsebert.tasks import find_task
from sparsebert.tasks.load_tokenizer import load_tokenizer
from sparsebert.tasks.models import load_model
from tests.sparsify.models import build

transformers = pytest.importorskip("transformers")


@pytest.fixture
def folder(tmp_path: Path, tokenizer: Any) -> Path:
    build("BertModel").save_pretrained(tmp_path / "bert")
    tokenizer.save_pretrained(tmp_path / "bert")
    return tmp_path / "bert"


def refusal(folder: Path, vocabulary: int | None = None) -> str:
    with pytest.raises(ValueError, match=re.escape(str(folder))) as caught:
        load_tokenizer(str(folder), vocabulary)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500
    return str(caught.value)


def test_a_small_vocabulary_is_loaded(folder: Path, tokenizer: Any) -> None:
    assert load_tokenizer(str(folder), len(tokenizer)).get_vocab() == tokenizer.get_vocab()


def test_a_vocabulary_file_without_a_tokenizer_file_is_loaded(folder: Path, tokenizer: Any) -> None:
    (folder / "tokenizer.json").unlink()
    words = sorted(tokenizer.get_vocab(), key=tokenizer.get_vocab().get)
    (folder / "vocab.txt").write_text("\n".join(words))
    assert load_tokenizer(str(folder)).get_vocab() == tokenizer.get_vocab()


def test_a_folder_without_a_vocabulary(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()
    missing = f"{folder} has no tokenizer: it holds no tokenizer.json or vocab.txt"
    assert refusal(folder) == missing
    (folder / "tokenizer_config.json").unlink()
    assert refusal(folder) == missing
    with pytest.raises(ValueError, match="has no tokenizer"):
        load_model(str(folder), find_task("sst2"))


def test_a_roberta_without_its_merges(tmp_path: Path) -> None:
    transformers.RobertaConfig().save_pretrained(tmp_path)
    (tmp_path / "vocab.json").write_text('{"<s>": 0, "<pad>": 1, "</s>": 2, "<unk>": 3, "<mask>": 4, "a": 5}')
    assert refusal(tmp_path).startswith(f"{tmp_path}: its tokenizer is not usable: `vocab` and `merges`")
    (tmp_path / "vocab.json").unlink()
    assert refusal(tmp_path).endswith("it holds no tokenizer.json or vocab.json and merges.txt")


def test_a_vocabulary_without_words(folder: Path) -> None:
    transformers.BertTokenizer().save_pretrained(folder)
    assert refusal(folder).endswith("its tokenizer has no words, only 5 special tokens")


def test_ids_beyond_the_embeddings(folder: Path, tokenizer: Any) -> None:
    size = len(tokenizer)
    assert refusal(folder, size - 1).endswith(f"vocabulary of {size} does not fit embeddings of {size - 1}")
    more = transformers.BertTokenizer(vocab=tokenizer.get_vocab() | {f"w{n}": n for n in range(size, 5000)})
    more.save_pretrained(folder)
    with pytest.raises(ValueError, match=r"vocabulary of 5000 does not fit embeddings of \d+$"):
        load_model(str(folder), find_task("sst2"))


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"model": 1}'])
def test_a_broken_file_is_named(folder: Path, content: str) -> None:
    (folder / "tokenizer.json").write_text(content)
    assert str(folder / "tokenizer.json") in refusal(folder)
