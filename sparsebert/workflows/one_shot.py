"""One-shot pruning of a model on disk: calibrate on texts or a task, prune, write a folder."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from sparsebert.hf.model_card import extend_card_of_dense
from sparsebert.one_shot import LayerMethod, prune_
from sparsebert.one_shot.layerwise import Report
from sparsebert.tasks.load_tokenizer import load_tokenizer
from sparsebert.tasks.models import load_whole
from sparsebert.tasks.texts import text_batches
from sparsebert.tickets.ticket import Ticket
from sparsebert.workflows.export import write_folder


def prune_folder(
    name: str,
    folder: Path,
    method: str | LayerMethod,
    texts: Sequence[str],
    *,
    count: int = 512,
    max_length: int | None = None,
    seed: int = 0,
    progress: Callable[[Report], None] | None = None,
    **options: Any,
) -> Ticket:
    """Prune a model once on unlabelled texts, and write it with its ticket to a folder.

    The folder holds dense weights with zeros, which any library loads, and ``ticket.safetensors``.

    Args:
        name: Hub id or folder of the model, of any task; sentence-transformers folders stay ones.
        folder: The folder to write. ``<folder>.unfinished`` beside it holds finished layers while pruning
            goes on; a call that was killed goes on after the last of them.
        method: As for :func:`sparsebert.prune_`.
        texts: Texts to calibrate on.
        count: Number of texts to draw.
        max_length: Tokens at which a text is cut.
        seed: Seed of the draw.
        progress: As for :func:`sparsebert.prune_`.
        options: More arguments of :func:`sparsebert.prune_`.

    Raises:
        ValueError, OSError: As for ``prune_`` and for loading a model. Nothing is written.
    """
    model = load_whole(name)
    tokenizer = load_tokenizer(name)
    batches = text_batches(texts, tokenizer, count=count, max_length=max_length, seed=seed)
    checkpoint = folder.with_name(f"{folder.name}.unfinished")
    ticket = prune_(model, method, data=batches, checkpoint=checkpoint, progress=progress, **options)

    def card(text: str | None, unfinished: Path) -> str:
        metadata: Mapping[str, Any] = ticket.metadata
        return extend_card_of_dense(text, ticket.sparsity, metadata, name=folder.name)

    write_folder(model, name, folder, card, ticket=ticket)
    checkpoint.unlink(missing_ok=True)
    return ticket
