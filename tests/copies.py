"""Copies of a module, however users make them."""

from __future__ import annotations

import copy
import io
import pickle
from typing import Any

import torch
from torch import nn


def copies_of(module: nn.Module) -> list[Any]:
    """Return copies by ``deepcopy``, through a pickle, and through a file of torch."""
    file = io.BytesIO()
    torch.save(module, file)
    file.seek(0)
    return [
        copy.deepcopy(module),
        pickle.loads(pickle.dumps(module)),
        torch.load(file, weights_only=False),
    ]
