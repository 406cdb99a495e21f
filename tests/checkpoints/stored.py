"""Weights as training code, wrappers and other libraries store them."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

State = dict[str, Tensor]


def prefixed(prefix: str) -> Callable[[State], State]:
    return lambda state: {f"{prefix}{name}": value for name, value in state.items()}


def inside(old: str, new: str) -> Callable[[State], State]:
    """Names with another spelling of ``old``, at its first place."""
    return lambda state: {name.replace(old, new, 1): value for name, value in state.items()}


def without(part: str) -> Callable[[State], State]:
    return lambda state: {name: value for name, value in state.items() if part not in name}


def write(folder: Path, source: Path, state: Mapping[str, Any], *, pickled: bool = False) -> Path:
    """A copy of a model's folder with other weights."""
    shutil.copytree(source, folder)
    if pickled:
        (folder / "model.safetensors").unlink()
        torch.save(dict(state), folder / "pytorch_model.bin")
    else:
        plain = {name: value.clone().contiguous() for name, value in state.items()}
        save_file(plain, folder / "model.safetensors", metadata={"format": "pt"})
    return folder
