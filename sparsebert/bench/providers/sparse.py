"""sparsebert: the ticket's linear layers, packed and run by the sparse kernels."""

from __future__ import annotations

from collections import Counter
from typing import ClassVar

from torch import nn

from sparsebert.bench.providers.base import TorchBackend
from sparsebert.bench.pruned_model import PrunedModel
from sparsebert.fuse import fuse_
from sparsebert.nn.fused_model import FusedModel
from sparsebert.nn.sparse_linear import SparseLinear
from sparsebert.planning.after_compaction import compaction_note
from sparsebert.sparsify import sparsify_


class Sparse(TorchBackend):
    name: ClassVar[str] = "sparse"
    summary: ClassVar[str] = "sparsebert"

    def convert(self, model: nn.Module, pruned: PrunedModel) -> nn.Module:
        sparse = sparsify_(
            model, pruned.ticket, format=pruned.format, tokens=pruned.tokens, measure=pruned.measure
        )
        return fuse_(sparse) if pruned.fuse else sparse

    def notes(self, model: nn.Module) -> dict[str, str]:
        formats = Counter(module.format for module in model.modules() if isinstance(module, SparseLinear))
        notes = {"formats": ", ".join(f"{count} {name}" for name, count in formats.most_common())}
        if any(isinstance(module, FusedModel) for module in model.modules()):
            notes["encoder"] = "fused"
        return notes | ({"removed": removal} if (removal := compaction_note(model)) else {})
