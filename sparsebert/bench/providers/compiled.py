"""torch.compile with its default backend."""

from __future__ import annotations

import os
import shutil
from typing import ClassVar

import torch
from torch import nn

from sparsebert.bench.providers.base import TorchBackend
from sparsebert.bench.pruned_model import PrunedModel


class Compiled(TorchBackend):
    name: ClassVar[str] = "compile"
    summary: ClassVar[str] = "torch.compile"

    def available(self) -> str | None:
        compiler = os.environ.get("CXX", "g++")
        if shutil.which(compiler) is None and not torch.cuda.is_available():
            return f"torch.compile needs a C++ compiler on the CPU, and {compiler} is not found: install g++"
        return None

    def convert(self, model: nn.Module, pruned: PrunedModel) -> nn.Module:
        torch._dynamo.reset()
        return torch.compile(model, dynamic=False)  # type: ignore[return-value]
