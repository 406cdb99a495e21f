"""sparsebert: the ticket's linear layers, packed and run by the sparse kernels; the dense encoder, fused."""

from __future__ import annotations

from collections import Counter
from typing import ClassVar

import torch
from torch import nn

from sparsebert.bench.providers.base import TorchBackend
from sparsebert.bench.pruned_model import PrunedModel
from sparsebert.cost.precision import lower_precisions
from sparsebert.fuse import fuse_
from sparsebert.nn.sparse_linear import SparseLinear
from sparsebert.planning.after_compaction import compaction_note
from sparsebert.planning.engine_choice import carried_encoder_plan
from sparsebert.sparsify import sparsify_
from sparsebert_kernels.dtype_names import long_name


class Sparse(TorchBackend):
    name: ClassVar[str] = "sparse"
    summary: ClassVar[str] = "sparsebert"

    def precision(self, pruned: PrunedModel) -> str:
        dtype = pruned.workload.dtype
        *_, lowest = (dtype, *lower_precisions(getattr(torch, dtype), pruned.tolerance))
        return lowest if lowest == "int8" else long_name(lowest)

    def dtype(self, pruned: PrunedModel) -> torch.dtype:
        dtype: torch.dtype = getattr(torch, pruned.workload.dtype)
        return dtype

    def convert(self, model: nn.Module, pruned: PrunedModel) -> nn.Module:
        return sparsify_(
            model,
            pruned.ticket,
            format=pruned.format,
            tokens=pruned.tokens,
            measure=pruned.measure,
            tolerance=pruned.tolerance,
            fuse=pruned.fuse,
        )

    def notes(self, model: nn.Module) -> dict[str, str]:
        layers = [module for module in model.modules() if isinstance(module, SparseLinear)]
        formats = Counter(f"{layer.format} {layer.precision}".rstrip() for layer in layers)
        notes = {"formats": ", ".join(f"{count} {name}" for name, count in formats.most_common())}
        if plan := carried_encoder_plan(model):
            notes["encoder_plan"] = str(plan)
            if plan.fused:
                notes["encoder"] = "fused"
        return notes | ({"removed": removal} if (removal := compaction_note(model)) else {})


class Fused(Sparse):
    name: ClassVar[str] = "fused"
    summary: ClassVar[str] = "the dense model, its encoder in one native call: the gain without sparsity"

    def convert(self, model: nn.Module, pruned: PrunedModel) -> nn.Module:
        return fuse_(model, tolerance=pruned.tolerance)

    def notes(self, model: nn.Module) -> dict[str, str]:
        return {"encoder_plan": str(carried_encoder_plan(model))}
