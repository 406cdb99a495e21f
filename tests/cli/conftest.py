"""A tiny BERT, its tokenizer and a folder of tiny tasks, as the commands find them on disk."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.cli.tiny import OTHER, QUICK, WORDS, save, write_tables


@pytest.fixture(scope="session")
def tokenizer() -> Any:
    transformers = pytest.importorskip("transformers")
    return transformers.BertTokenizer(vocab={word: index for index, word in enumerate(WORDS)})


@pytest.fixture(scope="session")
def bert(tmp_path_factory: pytest.TempPathFactory, tokenizer: Any) -> Path:
    return save(tmp_path_factory.mktemp("models") / "tiny-bert", tokenizer)


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """SST-2, CoLA and WikiText-2 in miniature, laid out as their copies are."""
    folder = tmp_path_factory.mktemp("data")
    write_tables(folder / "glue" / "SST-2", ("train.tsv", "dev.tsv"), "sentence\tlabel", "{text}\t{label}")
    write_tables(folder / "glue" / "CoLA", ("train.tsv", "dev.tsv"), "", "gj04\t{label}\t\t{text}")
    (folder / "wikitext-2").mkdir()
    lines = [" ".join(OTHER[(i + j) % 5] for j in range(12)) for i in range(40)]
    for name in ("wiki.train.raw", "wiki.valid.raw"):
        (folder / "wikitext-2" / name).write_text("\n".join(lines) + "\n")
    return folder


@pytest.fixture
def there(bert: Path, data: Path) -> list[str]:
    """Model and data of a command."""
    return ["--model", str(bert), "--data", str(data)]


@pytest.fixture
def asked(there: list[str], tmp_path: Path) -> list[str]:
    """A quick run on SST-2 in the folder ``run``."""
    return ["--task", "sst2", *there, "--out", str(tmp_path / "run"), *QUICK]
