"""Export of models on disk to another form: sparse, or dense with zeros."""

from __future__ import annotations

import contextlib
import re
import shutil
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sparsebert.atomic import replacing
from sparsebert.bench.activations import peak_activations
from sparsebert.bench.memory import model_bytes
from sparsebert.checkpoints.weight_files import weight_files
from sparsebert.compact import expand_
from sparsebert.hf.attach_quantizer import attach_quantizer_
from sparsebert.hf.embeddings import with_embeddings_in
from sparsebert.hf.model_card import extend_card, extend_card_of_dense
from sparsebert.hf.sentence_modules import DENSE_TYPE, SPARSE_TYPE, set_type
from sparsebert.hf.sentence_modules import FILE as MODULES
from sparsebert.json_object import load_json
from sparsebert.sparsify import densify_, sparsify_
from sparsebert.tasks.load_tokenizer import load_tokenizer
from sparsebert.tasks.models import load_as_saved
from sparsebert.tickets import TICKET_FILE
from sparsebert.tickets.ticket import Ticket
from sparsebert_kernels.dtype_names import long_name
from sparsebert_kernels.formats.dense import DEFAULT_TOKENS

_CARD = "README.md"
# Files that a sentence-transformers model has besides the encoder's files: its list of modules, and settings.
_SENTENCE_FILES = (MODULES, "config_sentence_transformers.json", "sentence_bert_config.json")
# Dtypes to store embeddings in.
EMBEDDING_DTYPES = ("float32", "bfloat16", "float16")


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
        activations = peak_activations(model, batch, length)
        return cls(_size_on_disk(Path(folder)), model_bytes(model), activations, batch, length)


def export_model(
    name: str,
    folder: Path,
    ticket: Ticket | None = None,
    *,
    sparse: bool,
    batch: int = 1,
    length: int | None = None,
    records: Iterable[Mapping[str, Any]] = (),
    measure: bool = True,
    portable: bool = False,
    embeddings: str | torch.dtype | None = None,
    tolerance: str = "fp32",
    fuse: bool | None = None,
) -> tuple[Footprint, Footprint]:
    """Write a pruned model to a folder, with its tokenizer and any files of sentence-transformers.

    A sparse or portable folder gets a model card. The card of the original model stays, with a section on its
    sparsity; so does its modules.json, which names a type that imports this package if the folder is sparse.

    Args:
        name: Hub id or folder of the model.
        folder: The folder to write.
        ticket: The ticket to prune by; None to keep the model's zeros as they are.
        sparse: True writes masks and kept weights, which only this package can load. False writes a dense
            model in the shapes of its configuration, which transformers can load without this package.
        batch: Sequences per call, for the choice of formats and the size of activations.
        length: Tokens of each sequence; by default 128, or the model's maximum if that is less.
        records: Records for the model card, as for :func:`sparsebert.hf.model_card.model_card`.
        measure: As for :func:`sparsebert.sparsify_`.
        portable: Write dense values, as ``sparse=False`` does, with a model card.
        embeddings: Dtype to store the embeddings in, such as "bf16", where it is narrower than the model's.
            The model loads in its own dtype; its embeddings are then rounded.
        tolerance: As for :func:`sparsebert.sparsify_`; the folder records it, and its values stay exact.
        fuse: As for :func:`sparsebert.sparsify_`; the folder records it.

    Returns:
        The model's footprint before and after.

    Raises:
        ValueError: For a ticket of another model, a model without zeros if ``sparse``, a batch that the model
            does not support, or an invalid modules.json. Nothing is written.
        OSError: As :func:`sparsebert.tasks.models.load_as_saved`.
    """
    sparse = sparse and not portable
    stored_in = None if embeddings is None else long_name(embeddings, EMBEDDING_DTYPES, "embeddings")
    model = load_as_saved(name)
    before = Footprint.of(model, name, batch, length)
    expand_(densify_(model))
    state: dict[str, Tensor] | None = None
    if sparse:
        tokens = before.batch * before.length
        sparsify_(model, ticket, tokens=tokens, measure=measure, tolerance=tolerance, fuse=fuse)
        attach_quantizer_(model, embeddings=stored_in)
    else:
        if ticket is not None:
            ticket.apply_(model)
        if stored_in is not None:
            state = with_embeddings_in(stored_in, model, model.state_dict())

    def card(text: str | None, unfinished: Path) -> str | None:
        if sparse:
            return extend_card(text, unfinished, records, name=folder.name)
        if portable or text is not None:
            pruned = ticket or Ticket.from_model(model)
            return extend_card_of_dense(text, pruned.sparsity, pruned.metadata, name=folder.name)
        return None

    write_folder(model, name, folder, card, sparse=sparse, state=state)
    return before, Footprint.of(model, folder, before.batch, before.length)


def write_folder(
    model: Any,
    name: str,
    folder: Path,
    card: Callable[[str | None, Path], str | None],
    *,
    sparse: bool = False,
    state: dict[str, Tensor] | None = None,
    ticket: Ticket | None = None,
) -> None:
    """Write a model to a folder, whole or not at all, with what belongs to the model that it was made from.

    Args:
        model: The model.
        name: Hub id or folder of the original model: its tokenizer, modules of sentence-transformers and card
            are copied.
        folder: The folder to write.
        card: Returns the text of the model card, or None for no card. Its arguments are the text of the
            original card, if there is one, and the unfinished folder.
        sparse: Whether loading the folder needs this package.
        state: Tensors to write; None for the model's own.
        ticket: A ticket to write beside the weights.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    with replacing(folder, model_bytes(model)) as unfinished:
        model.save_pretrained(unfinished, state_dict=state)
        _copy_tokenizer(name, unfinished)
        source = _download(name)
        if source is not None:
            _copy_sentence_modules(source, unfinished, SPARSE_TYPE if sparse else DENSE_TYPE)
        original = source / _CARD if source is not None else None
        is_there = original is not None and original.is_file()
        text = card(_decoded(original.read_bytes()) if original and is_there else None, unfinished)
        if text is not None:
            (unfinished / _CARD).write_bytes(text.encode("utf-8", "surrogateescape"))
        if ticket is not None:
            ticket.save(unfinished / TICKET_FILE)


def _size_on_disk(folder: Path) -> int | None:
    try:
        return sum(file.stat().st_size for file in weight_files(folder))
    except (OSError, ValueError):  # The cache of the hub, or files that only transformers finds.
        return None


def _copy_tokenizer(name: str, folder: Path) -> None:
    with contextlib.suppress(OSError, ValueError):  # A checkpoint may lack a tokenizer.
        load_tokenizer(name).save_pretrained(folder)


def _decoded(card: bytes) -> str:
    """Return the text of a card; bytes that are not UTF-8 survive."""
    return card.decode("utf-8", "surrogateescape")


def _download(name: str) -> Path | None:
    """Return the folder with a model's card and its files of sentence-transformers; None if unavailable."""
    from huggingface_hub import snapshot_download

    if Path(name).is_dir():
        return Path(name)
    try:
        return Path(snapshot_download(name, allow_patterns=[_CARD, *_SENTENCE_FILES, "[0-9]*_*/*"]))
    except (OSError, ValueError):  # The export of the encoder goes on without these files.
        return None


def _copy_sentence_modules(source: Path, folder: Path, type: str) -> None:
    """Copy the modules that follow the encoder of a sentence-transformers model, and the settings.

    Args:
        source: The folder of the model; nothing is copied if it is of another library.
        folder: The folder to copy to.
        type: Type of the encoder's module in the copied modules.json.
    """
    if not (source / MODULES).is_file():
        return
    for file in _SENTENCE_FILES:
        if (source / file).is_file():
            shutil.copyfile(source / file, folder / file)
    for path in _module_folders(source):
        if (source / path).is_dir():  # A module without settings may lack a folder.
            shutil.copytree(source / path, folder / path)
    former = DENSE_TYPE if type == SPARSE_TYPE else SPARSE_TYPE
    set_type(folder / MODULES, type, lambda module: _is_encoder(module, former))


def _is_encoder(module: Mapping[str, Any], type: str) -> bool:
    """Whether an entry of a modules.json is the encoder, in the folder of the model itself, of this type.

    sentence-transformers has moved its own type from module to module.
    """
    if module["path"]:
        return False
    if type == SPARSE_TYPE:
        return module.get("type") == SPARSE_TYPE
    return re.fullmatch(r"sentence_transformers\..*\bTransformer", str(module.get("type"))) is not None


def _module_folders(source: Path) -> list[str]:
    """Return the folders of the modules that follow the encoder, whose folder is the model's folder."""
    file = source / MODULES
    try:
        paths = [str(module["path"]) for module in load_json(file.read_text(encoding="utf-8"))]
    except (ValueError, KeyError, TypeError):
        raise ValueError(f"{file} must list the modules of sentence-transformers with their paths") from None
    for path in paths:
        if path and (path == ".." or Path(path).name != path):
            raise ValueError(f"{file}: the path of a module must be a folder beside the file, got {path!r}")
    return list(filter(None, paths))
