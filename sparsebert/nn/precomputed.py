"""Outputs of sparse layers that were computed before the layers are called."""

from __future__ import annotations

from contextvars import ContextVar
from typing import NamedTuple

from torch import Tensor, nn


class Precomputed(NamedTuple):
    """The output of each layer for the input ``x``."""

    x: Tensor
    outputs: dict[nn.Module, Tensor]


# Set by `sparsebert.nn.fused_qkv` while an attention runs. Each thread has a context of its own.
PRECOMPUTED: ContextVar[Precomputed | None] = ContextVar("precomputed outputs", default=None)


def take_precomputed(layer: nn.Module, x: Tensor) -> Tensor | None:
    """Return the precomputed output of ``layer`` for this very x, once; None if there is none."""
    precomputed = PRECOMPUTED.get()
    if precomputed is None or precomputed.x is not x:
        return None
    return precomputed.outputs.pop(layer, None)
