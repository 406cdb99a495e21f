"""The record that a compacted model carries, and its description in plain values."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

from torch import nn

from sparsebert.bert import base_model, is_bert_like, resolve
from sparsebert.compaction.live_rectangle import RectangleLinear
from sparsebert.tickets.bits import pack_bits
from sparsebert.tickets.ticket import Ticket

VERSION = 1

# The base model carries its record under this name; copies and pickles take it along.
_RECORD = "_sparsebert_compaction"


def attach_record_(model: nn.Module, record: Mapping[str, Any]) -> None:
    """Attach the record of its compaction to the base model."""
    setattr(base_model(model), _RECORD, dict(record))


def record_of(model: nn.Module) -> dict[str, Any]:
    """Return the attached record; empty without compaction and for models of other families."""
    return getattr(base_model(model), _RECORD, {}) if is_bert_like(model) else {}


def is_ticket_of(record: Mapping[str, Any], ticket: Ticket) -> bool:
    """Whether the record is of a compaction with this ticket."""
    return record["ticket"] in (ticket.digest, _earlier_digest(ticket))


def _earlier_digest(ticket: Ticket) -> str:
    """Return the digest that records held in place of ``Ticket.digest`` before version 0.2."""
    digest = hashlib.sha256()
    for kind, masks in (("masks", ticket.masks), ("bias_masks", ticket.bias_masks)):
        for key, mask in sorted(masks.items()):
            digest.update(f"{kind} {key} {tuple(mask.shape)}\n".encode())
            digest.update(pack_bits(mask).numpy().data)
    digest.update("\n".join(sorted(ticket.removed)).encode())
    return f"sha256:{digest.hexdigest()}"


def detach_record_(model: nn.Module) -> None:
    """Undo ``attach_record_``."""
    delattr(base_model(model), _RECORD)


def description_of(model: nn.Module) -> dict[str, Any]:
    """Describe the model as ``sparsebert.compact.compaction_description`` does."""
    record = record_of(model)
    if not record:
        return {}
    linears, stored = {}, 0
    for key, configured in record["linears"].items():
        layer: Any = resolve(model, key)
        shape = [layer.out_features, layer.in_features]
        live = list(layer.weight.shape) if isinstance(layer, RectangleLinear) else shape
        stored += live[0] * live[1]
        if live != list(configured):
            sizes = {"configured": list(configured), "shape": shape}
            linears[key] = sizes | ({"live": live} if live != shape else {})
    return record | {"linears": linears, "weights": record["weights"] | {"stored": stored}}
