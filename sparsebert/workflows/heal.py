"""Healing of a model on disk: load it and its teacher, train, and write a folder that loads as it did."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from sparsebert.accounting.run_account import RunAccount
from sparsebert.compact import expand_
from sparsebert.healing.heal import Healing, heal_, require_encoder, zeros_of
from sparsebert.healing.settings import MAX_LENGTH, HealingSettings
from sparsebert.healing.texts import Text
from sparsebert.hf.attach_quantizer import has_quantizer, recorded_option
from sparsebert.hf.model_card import extend_card, extend_card_of_dense
from sparsebert.hf.sentence_modules import FILE as MODULES
from sparsebert.json_object import load_json, read_json_object
from sparsebert.planning.planner import plan
from sparsebert.sparsify import densify_, sparsify_
from sparsebert.tasks.load_tokenizer import load_tokenizer
from sparsebert.tasks.models import load_as_saved
from sparsebert.tickets import TICKET_FILE
from sparsebert.tickets.provenance import weight_hash
from sparsebert.tickets.ticket import Ticket
from sparsebert.workflows.export import write_folder

# Settings of the encoder in a folder of sentence-transformers.
_ENCODER = "sentence_bert_config.json"


def heal(
    name: str,
    folder: Path,
    texts: Sequence[Text],
    *,
    teacher: str | None = None,
    ticket: Ticket | None = None,
    settings: HealingSettings,
    progress: Callable[[str], object] = lambda text: None,
    account: RunAccount | None = None,
) -> Healing:
    """Heal a model and write it to a folder, in the form that it had: dense, sparse, sentence-transformers.

    A killed call goes on from its last checkpoint, a file beside ``folder``, when it is repeated.

    Args:
        name: Hub id or folder of the pruned model; with ``ticket``, of the dense model to prune by it.
        folder: The folder to write, whole or not at all.
        texts: Texts like those that the model will read, or pairs of texts.
        teacher: Hub id or folder of the dense model. None for ``name`` itself with ``ticket``, else for the
            model that the folder records.
        ticket: The ticket; None for the one in the model's folder, or for the model's zeros.
        settings: Budget and details; pooling and maximum length follow the files of sentence-transformers.
        progress: Called with a line about the current step.
        account: Gets the fingerprints of model, teacher, tokenizer and texts.

    Raises:
        ValueError: No teacher is known, or as :func:`sparsebert.healing.heal.heal_`.
        OSError: As :func:`sparsebert.tasks.models.load_as_saved`.
    """
    progress(f"loading {name}")
    model = load_as_saved(name)
    require_encoder(model)
    saved = plan(model) if has_quantizer(model) else None
    origin = recorded_option(model, "origin", {})
    dtype = model.dtype
    expand_(densify_(model)).float()
    masks = ticket if ticket is not None else _ticket_in(Path(name), model, origin)
    dense = _teacher(model, name, teacher, ticket, masks.metadata)
    masks.apply_(model)
    tokenizer = load_tokenizer(name, model.config.vocab_size)
    if account is not None:
        account.identify(model=model, teacher=dense, tokenizer=tokenizer, texts=texts)
    healing = heal_(
        model,
        texts,
        teacher=dense,
        tokenizer=tokenizer,
        ticket=masks,
        checkpoint=checkpoint_of(folder),
        progress=progress,
        **asdict(as_sentences(settings, Path(name))),
    )
    progress(f"writing {folder}")
    model.to(dtype)
    healed = _healed(masks, healing, model)
    if saved is not None:
        sparsify_(model, healed, format=saved)

    def card(text: str | None, unfinished: Path) -> str | None:
        if saved is not None:
            return extend_card(text, unfinished, name=folder.name)
        return extend_card_of_dense(text, healed.sparsity, healed.metadata, name=folder.name)

    beside = ticket is not None or (Path(name) / TICKET_FILE).is_file()
    write_folder(model, name, folder, card, sparse=saved is not None, ticket=healed if beside else None)
    checkpoint_of(folder).unlink(missing_ok=True)
    return healing


def checkpoint_of(folder: Path) -> Path:
    """Return the file that holds the state of an unfinished healing whose result goes to ``folder``."""
    return folder.with_name(f"{folder.name}.unfinished")


def _teacher(
    model: Any, name: str, teacher: str | None, ticket: Ticket | None, origin: Mapping[str, Any]
) -> Any:
    """Return the dense model."""
    if teacher is None and ticket is not None:
        return copy.deepcopy(model)
    recorded = origin.get("model", {})
    if teacher is None and not recorded.get("local", True):
        teacher = recorded["id"]
    if teacher is None:
        raise ValueError(
            f"{name} does not record the dense model that it was pruned from: pass that as --teacher"
        )
    try:
        return expand_(densify_(load_as_saved(teacher))).float()
    except ValueError as error:
        raise ValueError(f"teacher {teacher}: {error}") from None


def as_sentences(settings: HealingSettings, folder: Path) -> HealingSettings:
    """Return the settings with the pooling and maximum length of a sentence-transformers model."""
    if not (folder / MODULES).is_file():
        return settings
    length = None
    if (folder / _ENCODER).is_file():
        length = read_json_object(folder / _ENCODER).get("max_seq_length")
    for module in load_json((folder / MODULES).read_text(encoding="utf-8")):
        file = folder / str(module.get("path", "")) / "config.json"
        if str(module.get("type", "")).endswith("Pooling") and file.is_file():
            pooling = "cls" if read_json_object(file).get("pooling_mode_cls_token") else "mean"
            settings = replace(settings, pooling=pooling)
    if settings.max_length is None and isinstance(length, int):
        settings = replace(settings, max_length=min(length, MAX_LENGTH))
    return settings


def _ticket_in(folder: Path, model: Any, origin: Mapping[str, Any]) -> Ticket:
    """Return the ticket beside the weights of a model, or else that of its zeros, with its origin."""
    if (folder / TICKET_FILE).is_file():
        return Ticket.load(folder / TICKET_FILE)
    zeros = zeros_of(model)
    return Ticket(zeros.masks, bias_masks=zeros.bias_masks, metadata=origin or zeros.metadata)


def _healed(ticket: Ticket, healing: Healing, model: Any) -> Ticket:
    """Return the ticket with the healing in its history, and the identity of the healed weights."""
    metadata = dict(ticket.metadata)
    metadata["history"] = [*metadata.get("history", []), {"operation": "heal", **healing.record()}]
    if "weights" in metadata.get("model", {}):
        metadata["model"] = {**metadata["model"], "weights": weight_hash(model)}
    return Ticket(ticket.masks, bias_masks=ticket.bias_masks, removed=ticket.removed, metadata=metadata)
