"""Provenance: what a ticket's metadata says of the model, weights and libraries it was made with."""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import json
import os
import re
import sys
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from sparsebert.bert import is_bert_like, resolve, structure

_TYPES: dict[str, type] = {
    "versions": dict,
    "method": str,
    "granularity": str,
    "block_size": list,
    "scope": str,
    "seed": int,
    "model": dict,
    "history": list,
}
# As the hub names models: an organisation's or user's, and some old ones of nobody's.
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?")


def weight_hash(model: nn.Module) -> str:
    """``sha256:`` and the digest over key, dtype, shape and bytes of every encoder matrix, in model order.

    The same for the bare model and every task head on it; another dtype gives another hash.
    Raises ValueError for a model of another family.
    """
    digest = hashlib.sha256()
    for key in structure(model).linears:
        # Not get_parameter: in a pruned, parametrized or packed layer the weight is a plain attribute.
        weight = torch.as_tensor(resolve(model, key).weight).detach().cpu().contiguous()
        digest.update(f"{key} {weight.dtype} {tuple(weight.shape)}\n".encode())
        digest.update(weight.view(torch.uint8).numpy().data)
    return f"sha256:{digest.hexdigest()}"


def describe_model(model: nn.Module) -> dict[str, Any]:
    """A model for the metadata: class, id, whether that is a ``local`` folder's (by its name only), number of
    matrices."""
    described: dict[str, Any] = {"class": type(model).__name__}
    if name := getattr(getattr(model, "config", None), "_name_or_path", None):
        local = os.path.isdir(name) or not _HUB_ID.fullmatch(name)
        described["id"] = os.path.basename(os.path.abspath(name)) if local else name
        described["local"] = local
    if is_bert_like(model):
        described["linears"] = len(structure(model).linears)
    return described


def checked_metadata(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """Metadata as it reads once saved, with the libraries' versions; ValueError if it is not JSON."""
    try:
        # Through JSON and back, so that tuples are lists before a ticket is saved as after.
        checked: dict[str, Any] = json.loads(json.dumps(dict(metadata), allow_nan=False))
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"metadata must be JSON: {error}") from None
    for name, expected in _TYPES.items():
        value = checked.get(name)
        if value is not None and (not isinstance(value, expected) or isinstance(value, bool)):
            raise ValueError(
                f"metadata {name!r} must be of type {expected.__name__}, not {type(value).__name__}"
            )
    checked.setdefault("versions", _versions())
    return checked


def _versions() -> dict[str, str]:
    found = _installed_version() | {"torch": torch.__version__}
    if "transformers" in sys.modules:
        found["transformers"] = sys.modules["transformers"].__version__
    return found


@functools.cache
def _installed_version() -> dict[str, str]:
    try:
        return {"sparsebert": importlib.metadata.version("sparsebert")}
    except importlib.metadata.PackageNotFoundError:  # imported from a source tree
        return {}
