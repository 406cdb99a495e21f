"""What the ticket empties taken out, and the rest dense: what compaction alone is worth."""

from __future__ import annotations

from typing import ClassVar

from torch import nn

from sparsebert.bench.providers.base import TorchBackend
from sparsebert.bench.pruned_model import PrunedModel
from sparsebert.compact import compact_
from sparsebert.planning.after_compaction import ROUND_TO
from sparsebert.sparsify import sparsify_


class Compact(TorchBackend):
    """Every layer of the ticket is prepacked dense in the shape it has left, as oneDNN's is in its own."""

    name: ClassVar[str] = "compact"
    summary: ClassVar[str] = "sparsebert, compacted but dense"

    def convert(self, model: nn.Module, pruned: PrunedModel) -> nn.Module:
        # By itself: `sparsify_` would pad heads for layers that store no zeros.
        compact_(model, pruned.ticket, round_to=ROUND_TO)
        return sparsify_(model, pruned.ticket, format="dense", tokens=pruned.tokens)
