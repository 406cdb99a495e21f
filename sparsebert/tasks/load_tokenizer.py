"""Loading of tokenizers by hub id or folder, with one-line errors for unusable files.

From a folder without a vocabulary transformers makes a tokenizer of special tokens alone, to which every word
is unknown.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sparsebert.json_object import read_json_object
from sparsebert_kernels.errors import one_line

_FILE = "tokenizer.json"


def load_tokenizer(name: str, vocabulary: int | None = None) -> Any:
    """Load the tokenizer of a model. One without a padding token, as GPT-2's, pads with its end token.

    Args:
        name: Hub id or folder of the model.
        vocabulary: Number of the model's token embeddings; None skips the comparison.

    Raises:
        ValueError: In one line, for a folder without a vocabulary, an unusable file, a vocabulary without
            words, and ids beyond the model's embeddings.
        OSError: For a hub id whose tokenizer is missing or not reachable.
    """
    from transformers import AutoTokenizer

    folder = Path(name)
    try:
        tokenizer = AutoTokenizer.from_pretrained(name)
    # tokenizers raises bare exceptions, and transformers what a wrong type leads to.
    except Exception as error:
        if isinstance(error, OSError) and not folder.is_dir():
            raise
        raise ValueError(_failure(folder, error)) from error
    if folder.is_dir() and (missing := _missing(folder, tokenizer)):
        raise ValueError(f"{name} has no tokenizer: it holds no {missing}")
    ids = tokenizer.get_vocab()
    if ids.keys() <= set(tokenizer.all_special_tokens):
        raise ValueError(f"{name}: its tokenizer has no words, only {len(ids)} special tokens")
    size = max(ids.values()) + 1
    if vocabulary is not None and size > vocabulary:
        raise ValueError(
            f"{name}: its tokenizer's vocabulary of {size} does not fit embeddings of {vocabulary}"
        )
    if tokenizer.pad_token is None and tokenizer.eos_token is not None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def _missing(folder: Path, tokenizer: Any) -> str:
    """Return the names of the vocabulary files that a folder lacks; "" if it lacks none."""
    if any(folder.glob("tokenizer.*json")) or any(folder.glob("*.model")):
        return ""
    names = [file for kind, file in tokenizer.vocab_files_names.items() if kind != "tokenizer_file"]
    if any((folder / file).is_file() for file in names):
        return ""
    others = " and ".join(names)
    return f"{_FILE} or {others}" if others else _FILE


def _failure(folder: Path, error: Exception) -> str:
    """Return the message for a tokenizer that cannot be loaded, with the JSON file at fault, if any."""
    for file in ("tokenizer_config.json", "special_tokens_map.json", _FILE):
        if (folder / file).is_file():
            try:
                read_json_object(folder / file)
            except (OSError, ValueError) as unreadable:
                return str(unreadable)
    at_fault = f"{folder / _FILE}" if (folder / _FILE).is_file() else f"{folder}: its tokenizer"
    return f"{at_fault} is not usable: {one_line(error)}"
