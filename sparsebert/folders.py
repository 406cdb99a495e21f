"""Models on disk from one form into another, sparse or with the zeros written out, and what each takes."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sparsebert.bench.activations import peak_activations
from sparsebert.bench.memory import model_bytes
from sparsebert.compact import expand_
from sparsebert.convert import DEFAULT_TOKENS, densify_, sparsify_
from sparsebert.model_loading import load_as_saved
from sparsebert.report.card import model_card
from sparsebert.ticket import Ticket
from sparsebert.training.files import replacing


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


def rewrite(
    name: str,
    folder: Path,
    ticket: Ticket | None = None,
    *,
    sparse: bool,
    batch: int = 1,
    length: int | None = None,
    records: Iterable[Mapping[str, Any]] = (),
) -> tuple[Footprint, Footprint]:
    """Write a model, a hub id or folder, with what ``ticket`` prunes at zero, and its tokenizer.

    ``sparse``: as masks and kept weights with a model card, else as a dense model that needs nothing but
    transformers, in the shapes of its configuration. Without a ticket, its zeros stay as they are. ``batch``
    sequences of ``length`` tokens are what formats are chosen and activations counted for; ``records`` are
    those of `sparsebert.report.card.model_card`.
    Returns what the model took before and takes now.

    Raises as `load_as_saved`, and ValueError for a ticket of another model, a model without zeros to be
    sparse, or a batch it cannot take; then nothing is written.
    """
    model = load_as_saved(name)
    before = Footprint.of(model, name, batch, length)
    expand_(densify_(model))
    if sparse:
        sparsify_(model, ticket, tokens=before.batch * before.length)
    elif ticket is not None:
        ticket.apply_(model)
    with replacing(folder) as unfinished:
        model.save_pretrained(unfinished)
        _copy_tokenizer(name, unfinished)
        if sparse:
            model_card(unfinished, records, name=folder.name).save(unfinished / "README.md")
    return before, Footprint.of(model, folder, before.batch, before.length)


def _copy_tokenizer(name: str, folder: Path) -> None:
    import transformers

    with contextlib.suppress(OSError, ValueError):  # a checkpoint need not bring one
        transformers.AutoTokenizer.from_pretrained(name).save_pretrained(folder)
