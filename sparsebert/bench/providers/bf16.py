"""Dense bfloat16, plain and prepacked: the gain of lower precision without sparsity."""

from __future__ import annotations

from typing import ClassVar

from sparsebert.bench.providers.eager import Eager
from sparsebert.bench.providers.onednn import OneDnn
from sparsebert.bench.pruned_model import PrunedModel


class Bf16(Eager):
    name: ClassVar[str] = "bf16"
    summary: ClassVar[str] = "plain PyTorch in bfloat16"

    def precision(self, pruned: PrunedModel) -> str:
        return "bfloat16"


class OneDnnBf16(OneDnn):
    name: ClassVar[str] = "onednn-bf16"
    summary: ClassVar[str] = "all linears prepacked for oneDNN in bfloat16"

    def precision(self, pruned: PrunedModel) -> str:
        return "bfloat16"
