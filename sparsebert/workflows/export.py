"""Models on disk from one form into another, sparse or with the zeros written out, and what each takes."""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sparsebert.atomic import replacing
from sparsebert.bench.activations import peak_activations
from sparsebert.bench.memory import model_bytes
from sparsebert.compact import expand_
from sparsebert.hf.model_card import model_card
from sparsebert.sparsify import densify_, sparsify_
from sparsebert.tasks.models import load_as_saved
from sparsebert.tickets.ticket import Ticket
from sparsebert_kernels.formats.dense import DEFAULT_TOKENS

# What sentence-transformers keeps beside the encoder's own files: its list of modules, and two of settings.
_OF_SENTENCES = ("modules.json", "config_sentence_transformers.json", "sentence_bert_config.json")


@dataclass(frozen=True)
class Footprint:
    """Bytes of a model: its weights on ``disk`` (None where they lie in no folder) and in memory, and what a
    forward pass of ``batch`` sequences of ``length`` tokens holds beside them
    (`sparsebert.bench.activations`)."""

    disk: int | None
    weights: int
    activations: int
    batch: int
    length: int

    @classmethod
    def of(cls, model: Any, folder: str | Path, batch: int = 1, length: int | None = None) -> Footprint:
        """``length``: 128 without one, or as many as the model has positions for.

        Raises ValueError for a batch or length that the model cannot take.
        """
        if length is None:
            length = min(DEFAULT_TOKENS, model.config.max_position_embeddings)
        files = [*Path(folder).glob("*.safetensors"), *Path(folder).glob("*.bin")]
        disk = sum(file.stat().st_size for file in files)
        activations = peak_activations(model, batch, length)
        return cls(disk or None, model_bytes(model), activations, batch, length)


def export_model(
    name: str,
    folder: Path,
    ticket: Ticket | None = None,
    *,
    sparse: bool,
    batch: int = 1,
    length: int | None = None,
    records: Iterable[Mapping[str, Any]] = (),
) -> tuple[Footprint, Footprint]:
    """Write a model, a hub id or folder, with what ``ticket`` prunes at zero, its tokenizer, and what makes
    it a model of sentence-transformers where it is one.

    ``sparse``: as masks and kept weights with a model card, else as a dense model that needs nothing but
    transformers, in the shapes of its configuration. Without a ticket, its zeros stay as they are. ``batch``
    sequences of ``length`` tokens are what formats are chosen and activations counted for; ``records`` are
    those of `sparsebert.hf.model_card.model_card`.
    Returns what the model took before and takes now.

    Raises as `load_as_saved`, and ValueError for a ticket of another model, a model without zeros to be
    sparse, a batch it cannot take, or a modules.json that is none; then nothing is written.
    """
    model = load_as_saved(name)
    before = Footprint.of(model, name, batch, length)
    expand_(densify_(model))
    if sparse:
        sparsify_(model, ticket, tokens=before.batch * before.length)
    elif ticket is not None:
        ticket.apply_(model)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with replacing(folder) as unfinished:
        model.save_pretrained(unfinished)
        _copy_tokenizer(name, unfinished)
        _copy_sentence_modules(name, unfinished)
        if sparse:
            model_card(unfinished, records, name=folder.name).save(unfinished / "README.md")
    return before, Footprint.of(model, folder, before.batch, before.length)


def _copy_tokenizer(name: str, folder: Path) -> None:
    import transformers

    with contextlib.suppress(OSError, ValueError):  # a checkpoint need not bring one
        transformers.AutoTokenizer.from_pretrained(name).save_pretrained(folder)


def _copy_sentence_modules(name: str, folder: Path) -> None:
    """Of a model of sentence-transformers, what comes after the encoder, and how it is to be used."""
    from huggingface_hub import snapshot_download

    source = Path(name)
    if not source.is_dir():
        try:
            source = Path(snapshot_download(name, allow_patterns=[*_OF_SENTENCES, "[0-9]*_*/*"]))
        except (OSError, ValueError):  # not to be had: the encoder was, and is what was asked for
            return
    if not (source / _OF_SENTENCES[0]).is_file():
        return
    for file in _OF_SENTENCES:
        if (source / file).is_file():
            shutil.copyfile(source / file, folder / file)
    for path in _module_folders(source):
        if (source / path).is_dir():  # one without settings need not have one
            shutil.copytree(source / path, folder / path)


def _module_folders(source: Path) -> list[str]:
    """Those of the modules behind the encoder, which is the folder itself."""
    file = source / _OF_SENTENCES[0]
    try:
        paths = [str(module["path"]) for module in json.loads(file.read_text(encoding="utf-8"))]
    except (ValueError, KeyError, TypeError):
        raise ValueError(f"{file} is no list of sentence-transformers' modules with their paths") from None
    for path in paths:
        if path and (path == ".." or Path(path).name != path):
            raise ValueError(f"{file} names {path!r}: the folder of a module is expected, beside this file")
    return list(filter(None, paths))
