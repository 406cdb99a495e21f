"""Export of models on disk to another form: sparse, or dense with zeros."""

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

# Files that a sentence-transformers model has besides the encoder's files: its list of modules, and settings.
_SENTENCE_FILES = ("modules.json", "config_sentence_transformers.json", "sentence_bert_config.json")


@dataclass(frozen=True)
class Footprint:
    """Memory and disk space of a model, in bytes.

    Attributes:
        disk: Weights on disk; None if no folder holds them.
        weights: Weights in memory.
        activations: Peak memory of a forward pass without the weights (``sparsebert.bench.activations``).
        batch: Sequences in the forward pass.
        length: Tokens of each sequence.
    """

    disk: int | None
    weights: int
    activations: int
    batch: int
    length: int

    @classmethod
    def of(cls, model: Any, folder: str | Path, batch: int = 1, length: int | None = None) -> Footprint:
        """Measure a model.

        Args:
            model: The model in memory.
            folder: The folder that it was loaded from or saved to.
            batch: Sequences in a forward pass.
            length: Tokens of each sequence; by default 128, or the model's maximum if that is less.

        Raises:
            ValueError: For a batch or length that the model does not support.
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
    """Write a pruned model to a folder, with its tokenizer and any files of sentence-transformers.

    Args:
        name: Hub id or folder of the model.
        folder: The folder to write.
        ticket: The ticket to prune by; None to keep the model's zeros as they are.
        sparse: True writes masks and kept weights, with a model card. False writes a dense model in the
            shapes of its configuration, which transformers can load without this package.
        batch: Sequences per call, for the choice of formats and the size of activations.
        length: Tokens of each sequence; by default 128, or the model's maximum if that is less.
        records: Records for the model card, as for :func:`sparsebert.hf.model_card.model_card`.

    Returns:
        The model's footprint before and after.

    Raises:
        ValueError: For a ticket of another model, a model without zeros if ``sparse``, a batch that the model
            does not support, or an invalid modules.json. Nothing is written.
        OSError: As :func:`sparsebert.tasks.models.load_as_saved`.
    """
    model = load_as_saved(name)
    before = Footprint.of(model, name, batch, length)
    expand_(densify_(model))
    if sparse:
        sparsify_(model, ticket, tokens=before.batch * before.length)
    elif ticket is not None:
        ticket.apply_(model)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with replacing(folder, model_bytes(model)) as unfinished:
        model.save_pretrained(unfinished)
        _copy_tokenizer(name, unfinished)
        _copy_sentence_modules(name, unfinished)
        if sparse:
            model_card(unfinished, records, name=folder.name).save(unfinished / "README.md")
    return before, Footprint.of(model, folder, before.batch, before.length)


def _copy_tokenizer(name: str, folder: Path) -> None:
    import transformers

    with contextlib.suppress(OSError, ValueError):  # A checkpoint may lack a tokenizer.
        transformers.AutoTokenizer.from_pretrained(name).save_pretrained(folder)


def _copy_sentence_modules(name: str, folder: Path) -> None:
    """Copy the modules that follow the encoder of a sentence-transformers model, and the settings."""
    from huggingface_hub import snapshot_download

    source = Path(name)
    if not source.is_dir():
        try:
            source = Path(snapshot_download(name, allow_patterns=[*_SENTENCE_FILES, "[0-9]*_*/*"]))
        except (OSError, ValueError):  # Unavailable; the export of the encoder goes on without these modules.
            return
    if not (source / _SENTENCE_FILES[0]).is_file():
        return
    for file in _SENTENCE_FILES:
        if (source / file).is_file():
            shutil.copyfile(source / file, folder / file)
    for path in _module_folders(source):
        if (source / path).is_dir():  # A module without settings may lack a folder.
            shutil.copytree(source / path, folder / path)


def _module_folders(source: Path) -> list[str]:
    """Return the folders of the modules that follow the encoder, whose folder is the model's folder."""
    file = source / _SENTENCE_FILES[0]
    try:
        paths = [str(module["path"]) for module in json.loads(file.read_text(encoding="utf-8"))]
    except (ValueError, KeyError, TypeError):
        raise ValueError(f"{file} must list the modules of sentence-transformers with their paths") from None
    for path in paths:
        if path and (path == ".." or Path(path).name != path):
            raise ValueError(f"{file}: the path of a module must be a folder beside the file, got {path!r}")
    return list(filter(None, paths))
