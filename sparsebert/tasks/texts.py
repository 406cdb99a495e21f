"""Unlabelled texts: read from any file, and encoded as batches for a model."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from sparsebert.tasks.examples import Example, Examples, Question, Tagged
from sparsebert.tasks.tables import lines_of, read_columns, read_text, stripped

# Names of the column that holds the texts, where the user names none, best first.
_TEXT_COLUMNS = ("text", "sentence", "texts", "sentences", "content")
_ENDINGS = ".txt, .csv, .tsv, .jsonl, .json or .parquet"


def read_texts(path: Path | str, column: str | None = None) -> list[str]:
    """Read texts; blank ones are left out.

    Args:
        path: ``.txt`` with one text a line; or a table (``.csv``, ``.tsv``, ``.jsonl``, ``.json``,
            ``.parquet``).
        column: The table's column; None for its column "text", "sentence" or "content".

    Raises:
        ValueError: The ending is another; there is no such column, or no text.
        FileNotFoundError: If ``path`` does not exist.
    """
    path = Path(path)
    if not path.is_file() and not path.exists():
        raise FileNotFoundError(f"{path} does not exist: pass a file of texts ({_ENDINGS})")
    suffix = path.suffix.lower()
    if suffix == ".txt":
        if column is not None:
            raise ValueError(f"{path} holds one text a line and no columns: omit the column {column!r}")
        texts = lines_of(read_text(path))
    elif suffix == ".parquet":
        texts = _parquet(path, column)
    elif suffix in (".csv", ".tsv", ".jsonl", ".ndjson", ".json"):
        texts = _table(path, column)
    else:
        raise ValueError(f"{path}: a file of texts must end in {_ENDINGS}, got {suffix or 'no ending'}")
    texts = [text for text in map(stripped, texts) if text]
    if not texts:
        raise ValueError(f"{path} holds no text")
    return texts


def read_pairs(path: Path | str, columns: tuple[str, str]) -> list[tuple[str, str]]:
    """Read pairs of texts that a model reads together; rows where one is blank are left out.

    Args:
        path: A table, as for :func:`read_texts`.
        columns: The columns of the first and of the second text.

    Raises:
        ValueError, FileNotFoundError: As :func:`read_texts`.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist: pass a table of pairs")
    if path.suffix.lower() == ".parquet":
        rows = list(zip(*(_parquet(path, column) for column in columns), strict=True))
    else:
        rows = [tuple(row) for _, row in read_columns(path, list(columns))]
    pairs = [(stripped(first), stripped(second)) for first, second in rows]
    pairs = [pair for pair in pairs if all(pair)]
    if not pairs:
        raise ValueError(f"{path} holds no pair of texts in columns {columns[0]} and {columns[1]}")
    return pairs


def texts_of(examples: Examples) -> list[str | tuple[str, str]]:
    """Return the texts of a task's examples without their labels: single ones, or pairs read together."""
    texts: list[str | tuple[str, str]] = []
    for example in examples:
        if isinstance(example, Question):
            texts.append((example.question, example.context))
        elif isinstance(example, Example):
            first, *others = example.texts
            texts.append((first, others[0]) if others else first)
        elif isinstance(example, Tagged):
            texts.append(" ".join(example.words))
        else:
            texts.append(example)
    return texts


def text_batches(
    texts: Sequence[str],
    tokenizer: Any,
    *,
    count: int | None = None,
    batch_size: int = 32,
    max_length: int | None = None,
    seed: int = 0,
) -> list[dict[str, Any]]:
    """Encode texts as batches for a model, texts of similar length together.

    Args:
        texts: The texts.
        tokenizer: Tokenizer of the model.
        count: Number of texts to draw, without replacement; None for all.
        batch_size: Texts per batch.
        max_length: Tokens at which a text is cut; None for the tokenizer's, at most 512.
        seed: Seed of the draw.

    Returns:
        Keyword arguments for the model: int64 tensors [texts, longest of the batch], padded.

    Raises:
        ValueError: There are no texts, or fewer than ``count``.
    """
    texts = [text for text in texts if stripped(text)]
    if not texts:
        raise ValueError("texts hold no text: pass at least one")
    if count is not None:
        if count > len(texts):
            raise ValueError(f"{count} texts are needed, got {len(texts)}: pass more texts or a lower count")
        texts = random.Random(seed).sample(texts, count)
    longest = min(max_length or 512, tokenizer.model_max_length)
    encoded = tokenizer(list(texts), truncation=True, max_length=longest)
    names = [name for name in encoded if name in tokenizer.model_input_names]
    rows = [{name: encoded[name][index] for name in names} for index in range(len(texts))]
    rows.sort(key=lambda row: len(row["input_ids"]))
    return [dict(tokenizer.pad(part, return_tensors="pt")) for part in _parts(rows, batch_size)]


def _parts(rows: list[dict[str, Any]], size: int) -> Iterator[list[dict[str, Any]]]:
    for begin in range(0, len(rows), size):
        yield rows[begin : begin + size]


def _table(path: Path, column: str | None) -> list[str]:
    if column is not None:
        return [row[0] for _, row in read_columns(path, [column])]
    for name in _TEXT_COLUMNS:
        try:
            return [row[0] for _, row in read_columns(path, [name])]
        except ValueError as error:
            if "no column" not in str(error):
                raise
            _, _, columns = str(error).partition("the columns are ")
    raise _no_column(path, None, columns)


def _parquet(path: Path, column: str | None) -> list[str]:
    from datasets import load_dataset
    from datasets.utils.logging import disable_progress_bar

    disable_progress_bar()
    rows = load_dataset("parquet", data_files=str(path), split="train")
    names = [column] if column is not None else [name for name in _TEXT_COLUMNS if name in rows.column_names]
    if not names or names[0] not in rows.column_names:
        raise _no_column(path, column, ", ".join(rows.column_names))
    return ["" if text is None else str(text) for text in rows[names[0]]]


def _no_column(path: Path, column: str | None, columns: str) -> ValueError:
    """Return the error for a table without the column, or without any that holds texts by its name."""
    if column is not None:
        return ValueError(f"{path}: no column {column!r}; the columns are {columns}")
    accepted = f"{', '.join(_TEXT_COLUMNS[:-1])} or {_TEXT_COLUMNS[-1]}"
    return ValueError(f"{path}: no column {accepted}; name the column of the texts, one of {columns}")
