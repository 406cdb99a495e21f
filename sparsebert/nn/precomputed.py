"""Outputs of sparse layers that were computed before the layers are called."""

from __future__ import annotations

from contextvars import ContextVar
from typing import NamedTuple

import torch
from torch import Tensor, nn


class Precomputed(NamedTuple):
    """The output of each layer for the input ``x``."""

    x: Tensor
    outputs: dict[nn.Module, Tensor]


# Set by `sparsebert.nn.fused_qkv` while an attention runs. Each thread has a context of its own.
PRECOMPUTED: ContextVar[Precomputed | None] = ContextVar("precomputed outputs", default=None)


# Attribute of a layer with (x, output) while a compiler traces its attention: compilers follow attributes of
# modules, and no context variables. The compiled code never leaves one behind.
TRACED = "_traced_output"


def leave(layer: nn.Module, x: Tensor, output: Tensor) -> None:
    """Leave the output of ``layer`` for x, in a trace."""
    setattr(layer, TRACED, (x, output))


def leave_none(layer: nn.Module) -> None:
    """Drop what ``leave`` left."""
    if getattr(layer, TRACED, None) is not None:
        setattr(layer, TRACED, None)


def take_precomputed(layer: nn.Module, x: Tensor) -> Tensor | None:
    """Return the precomputed output of ``layer`` for this very x, once; None if there is none."""
    if torch.compiler.is_compiling():
        traced = getattr(layer, TRACED, None)
        return traced[1] if traced is not None and traced[0] is x else None
    precomputed = PRECOMPUTED.get()
    if precomputed is None or precomputed.x is not x:
        return None
    return precomputed.outputs.pop(layer, None)
