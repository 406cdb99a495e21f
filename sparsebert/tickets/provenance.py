"""Provenance: the identities of masks and weights, and the metadata of a ticket."""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import json
import os
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from sparsebert.bert import is_bert_like, structure, weight_of
from sparsebert.linear_layers import unfiltered

_TYPES: dict[str, type] = {
    "versions": dict,
    "method": str,
    "granularity": str,
    "block_size": list,
    "round_to": int,
    "scope": str,
    "seed": int,
    "model": dict,
    "history": list,
}
# Model ids of the hub: "organisation/model", or "model" for some old ones.
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?")


def weight_hash(model: nn.Module) -> str:
    """Return the identity of a model's encoder: ``sha256:`` and a digest.

    The digest covers key, dtype, shape and bytes of every encoder matrix in model order; of a model that is
    not BERT-like, every matrix that is pruned without a filter. It is the same for the bare model and every
    task head on it, and changes with the dtype.
    """
    digest = hashlib.sha256()
    for key in unfiltered(model):
        weight = weight_of(model, key).detach().cpu().contiguous()
        digest.update(f"{key} {weight.dtype} {tuple(weight.shape)}\n".encode())
        digest.update(weight.view(torch.uint8).numpy().data)
    return f"sha256:{digest.hexdigest()}"


def masks_digest(packed: Iterable[tuple[str, Sequence[int], Tensor]], removed: Iterable[str] = ()) -> str:
    """Return the identity of masks, which does not depend on where they are stored.

    Args:
        packed: (key, shape, packed bits) of every mask, as ``sparsebert.tickets.bits`` packs them: weight
            masks sorted by key, then bias masks sorted by key.
        removed: Modules that are removed whole.

    Returns:
        ``sha256:`` and the digest.
    """
    digest = hashlib.sha256()
    for key, shape, bits in packed:
        digest.update(f"{key} {tuple(shape)}\n".encode())
        digest.update(bits.cpu().numpy().data)
    for module in sorted(removed):
        digest.update(f"{module} removed\n".encode())
    return f"sha256:{digest.hexdigest()}"


def describe_model(model: nn.Module) -> dict[str, Any]:
    """Describe a model for the metadata.

    Returns:
        ``class``; ``id``, the hub id or the bare name of a folder; ``local``, whether it is a folder;
        ``linears`` and ``heads``, the numbers of encoder matrices and of attention heads of a layer. Entries
        that are unknown for the model are omitted.
    """
    described: dict[str, Any] = {"class": type(model).__name__}
    if name := getattr(getattr(model, "config", None), "_name_or_path", None):
        local = os.path.isdir(name) or not _HUB_ID.fullmatch(name)
        described["id"] = os.path.basename(os.path.abspath(name)) if local else name
        described["local"] = local
    if is_bert_like(model):
        encoder = structure(model)
        described |= {"linears": len(encoder.linears), "heads": encoder.num_heads}
    return described


def checked_metadata(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """Return metadata in the form that a ticket file returns, with the versions of the libraries added.

    Raises:
        ValueError: The metadata is not JSON, or a standard entry has the wrong type.
    """
    try:
        # Through JSON and back, so that tuples become lists before a ticket is saved, too.
        checked: dict[str, Any] = json.loads(json.dumps(dict(metadata), allow_nan=False))
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"metadata must be JSON: {error}") from None
    for name, expected in _TYPES.items():
        value = checked.get(name)
        if value is not None and (not isinstance(value, expected) or isinstance(value, bool)):
            raise ValueError(
                f"metadata {name!r} must be of type {expected.__name__}, got {type(value).__name__}"
            )
    for name, value in (
        *(("block_size", size) for size in checked.get("block_size") or ()),
        *((f"model.{name}", (checked.get("model") or {}).get(name, 0)) for name in ("linears", "heads")),
    ):
        if type(value) is not int:
            raise ValueError(f"metadata {name!r} must be whole numbers, got {value!r}")
    checked.setdefault("versions", _versions())
    return checked


def _versions() -> dict[str, str]:
    versions = _installed_version() | {"torch": torch.__version__}
    if "transformers" in sys.modules:
        versions["transformers"] = sys.modules["transformers"].__version__
    return versions


@functools.cache
def _installed_version() -> dict[str, str]:
    try:
        return {"sparsebert": importlib.metadata.version("sparsebert")}
    except importlib.metadata.PackageNotFoundError:  # imported from a source tree
        return {}
