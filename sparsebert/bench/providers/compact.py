"""Compaction without sparse layers: the gain of compaction alone."""

from __future__ import annotations

from typing import ClassVar

from torch import nn

from sparsebert.bench.providers.base import TorchBackend
from sparsebert.bench.pruned_model import PrunedModel
from sparsebert.compact import compact_
from sparsebert.planning.after_compaction import ROUND_TO
from sparsebert.sparsify import sparsify_


class Compact(TorchBackend):
    """The compacted model, with every layer of the ticket prepacked for oneDNN in its compacted shape."""

    name: ClassVar[str] = "compact"
    summary: ClassVar[str] = "sparsebert, compacted but dense"

    def convert(self, model: nn.Module, pruned: PrunedModel) -> nn.Module:
        # Compacted separately, because `sparsify_` pads heads only for layers that store zeros.
        compact_(model, pruned.ticket, round_to=ROUND_TO)
        return sparsify_(model, pruned.ticket, format="dense", tokens=pruned.tokens)
