"""Snapshots: exact copies of a model's state, for rewinding.

A snapshot always copies. A ``state_dict`` references the live tensors: "rewinding" to an uncloned one copies
every weight onto itself, as the released code of Chen et al. 2020 does for language-model tickets.
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from sparsebert.atomic import replacing
from sparsebert.bert import base_prefix, is_bert_like, structure


class Snapshot:
    """CPU copies of all parameters, and of the buffers in the ``state_dict``, by name.

    A parameter that several modules share has one copy, under its first name.
    """

    def __init__(self, tensors: dict[str, Tensor]) -> None:
        self.tensors = tensors

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return sum(tensor.nbytes for tensor in self.tensors.values())

    @classmethod
    def of(cls, model: nn.Module) -> Snapshot:
        """Copy the state of a model."""
        return cls({name: tensor.detach().cpu().clone() for name, tensor in _state(model).items()})

    def restore_(self, model: nn.Module, names: Collection[str] | None = None) -> None:
        """Write the tensors into the model and verify them.

        Args:
            model: The model.
            names: Tensors to write; None for all.

        Raises:
            RuntimeError: A tensor in the model differs from its copy (see :meth:`require_equal`).
        """
        state = _state(model)
        with torch.no_grad():
            for name in self.tensors if names is None else names:
                state[name].copy_(self.tensors[name])
        self.require_equal(model, names)

    def require_equal(self, model: nn.Module, names: Collection[str] | None = None) -> None:
        """Raise RuntimeError, naming the first tensor of the model that differs from its copy in any bit."""
        state = _state(model)
        for name in self.tensors if names is None else names:
            copied, live = self.tensors[name], state[name].detach().cpu()
            if copied.dtype != live.dtype or not torch.equal(_bytes(copied), _bytes(live)):
                raise RuntimeError(f"rewinding failed: {name} differs from its snapshot")

    def save(self, path: Path) -> None:
        """Write a safetensors file, whole or not at all."""
        with replacing(path, self.nbytes) as unfinished:
            save_file({name: tensor.contiguous() for name, tensor in self.tensors.items()}, unfinished)

    @classmethod
    def load(cls, path: Path) -> Snapshot:
        """Read a safetensors file."""
        return cls(load_file(path))


def head_names(model: nn.Module) -> list[str]:
    """Return the names of the task head's tensors: those outside the base model."""
    prefix = structure(model).prefix if is_bert_like(model) else base_prefix(model)
    if getattr(model, prefix, None) is None:  # a base model, without a head
        return []
    return [name for name in _state(model) if prefix and not name.startswith(f"{prefix}.")]


def fresh_head(model: nn.Module, seed: int) -> Snapshot:
    """Return the head that the model's class initialises with a seed; the global random state is kept."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        fresh = type(model)(model.config)
    state = _state(fresh)
    return Snapshot({name: state[name].detach() for name in head_names(model)})


def _state(model: nn.Module) -> dict[str, Tensor]:
    """Return the live parameters and persistent buffers; shared tensors appear once."""
    persistent = model.state_dict().keys()
    buffers = {name: buffer for name, buffer in model.named_buffers() if name in persistent}
    return {**dict(model.named_parameters()), **buffers}


def _bytes(tensor: Tensor) -> Tensor:
    return tensor.contiguous().flatten().view(torch.uint8)
