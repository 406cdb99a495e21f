"""Snapshots: exact copies of a model's state to rewind to.

Always copies. A ``state_dict`` holds the live tensors, so "rewinding" to one that was not cloned writes every
weight onto itself: in the released code of Chen et al. 2020 the language-model tickets are never rewound.
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from sparsebert.atomic import replacing
from sparsebert.bert import structure


class Snapshot:
    """Name -> copy on the CPU of every parameter and every buffer that a ``state_dict`` holds.

    A parameter that several modules share is there once, under its first name.
    """

    def __init__(self, tensors: dict[str, Tensor]) -> None:
        self.tensors = tensors

    @classmethod
    def of(cls, model: nn.Module) -> Snapshot:
        return cls({name: tensor.detach().cpu().clone() for name, tensor in _state(model).items()})

    def restore_(self, model: nn.Module, names: Collection[str] | None = None) -> None:
        """Write the tensors (those of these names) into the model, and make sure that they are there.

        Raises RuntimeError as :meth:`require_equal` does.
        """
        state = _state(model)
        with torch.no_grad():
            for name in self.tensors if names is None else names:
                state[name].copy_(self.tensors[name])
        self.require_equal(model, names)

    def require_equal(self, model: nn.Module, names: Collection[str] | None = None) -> None:
        """Raise RuntimeError, naming the first tensor that differs from the copy in a single bit."""
        state = _state(model)
        for name in self.tensors if names is None else names:
            mine, theirs = self.tensors[name], state[name].detach().cpu()
            if mine.dtype != theirs.dtype or not torch.equal(_bytes(mine), _bytes(theirs)):
                raise RuntimeError(f"rewinding failed: {name} is not bit for bit what it was")

    def save(self, path: Path) -> None:
        """Write one safetensors file, whole or not at all."""
        with replacing(path) as unfinished:
            save_file({name: tensor.contiguous() for name, tensor in self.tensors.items()}, unfinished)

    @classmethod
    def load(cls, path: Path) -> Snapshot:
        return cls(load_file(path))


def head_names(model: nn.Module) -> list[str]:
    """Names in a snapshot of what does not belong to the base model: the task head."""
    prefix = structure(model).prefix
    return [name for name in _state(model) if prefix and not name.startswith(f"{prefix}.")]


def fresh_head(model: nn.Module, seed: int) -> Snapshot:
    """The head as the model's class initialises it with this seed; the random state outside stays."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        fresh = type(model)(model.config)
    state = _state(fresh)
    return Snapshot({name: state[name].detach() for name in head_names(model)})


def _state(model: nn.Module) -> dict[str, Tensor]:
    """The live tensors, each once."""
    persistent = model.state_dict().keys()
    buffers = {name: buffer for name, buffer in model.named_buffers() if name in persistent}
    return {**dict(model.named_parameters()), **buffers}


def _bytes(tensor: Tensor) -> Tensor:
    return tensor.contiguous().flatten().view(torch.uint8)
