"""Plain PyTorch: the model as ``from_pretrained`` returns it."""

from __future__ import annotations

from typing import ClassVar

from torch import nn

from sparsebert.bench.providers.base import TorchBackend
from sparsebert.bench.pruned_model import PrunedModel


class Eager(TorchBackend):
    name: ClassVar[str] = "eager"
    summary: ClassVar[str] = "plain PyTorch"

    def convert(self, model: nn.Module, pruned: PrunedModel) -> nn.Module:
        return model
