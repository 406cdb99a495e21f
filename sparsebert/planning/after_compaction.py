"""The target layers of a model after compaction."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from sparsebert.bert import is_bert_like, resolve
from sparsebert.compaction.analyze import CompactionPlan, MatrixCompaction, analyze
from sparsebert.compaction.install import compacted_linear
from sparsebert.compaction.manifest import description_of, is_ticket_of, record_of
from sparsebert.cost import gpu_roofline
from sparsebert.cost.candidates import format_candidates
from sparsebert.linear_layers import Filter
from sparsebert.planning.target_layers import TargetLayer, select_target_layers
from sparsebert.tickets.ticket import Ticket

# Compaction keeps neurons and head dimensions in multiples of this: whole vectors for the kernels.
ROUND_TO = 8


@dataclass(frozen=True, eq=False)
class CompactedTargets:
    """The layers to pack, and the compaction that comes first.

    Attributes:
        layers: Target layers in the ticket's order, in the shapes that compaction gives them.
        compaction: The compaction to install before packing; None if the model keeps its shapes.
        removal_note: One line on the compaction, for the plan.
    """

    layers: tuple[TargetLayer, ...]
    compaction: CompactionPlan | None
    removal_note: str = ""

    @property
    def dense_matrices(self) -> tuple[MatrixCompaction, ...]:
        """Matrices that compaction changes and that stay dense."""
        keys = {layer.key for layer in self.layers}
        matrices = self.compaction.matrices if self.compaction else ()
        return tuple(matrix for matrix in matrices if matrix.compacted and matrix.key not in keys)


def compacted_targets(
    model: nn.Module,
    ticket: Ticket | None,
    filter: Filter | None = None,
    *,
    tokens: int,
    compact: bool | None = None,
    trainable: bool = False,
    format: str = "auto",
    tolerance: str = "fp32",
    target: gpu_roofline.Device | None = None,
) -> CompactedTargets:
    """Return the layers that ``select_target_layers`` selects, after compaction.

    A model that was compacted with this very ticket is not compacted again: the zeros in its weights take the
    place of the ticket's masks.

    Args:
        model: The model; it is only read.
        ticket: The masks; without one, the zeros in the weights.
        filter: As in ``select_target_layers``.
        tokens: Rows of x in a call.
        compact: True demands compaction and False forbids it. None compacts if the model allows it, there is
            no ``filter``, the layers are not ``trainable``, and they are not predicted to be slower for it.
        trainable: Whether the kept weights will be trained; layers without pruned weights then stay dense.
        format: "auto" if a format is chosen for each layer, as the prediction requires.
        tolerance: The lowest precision in which layers may compute.
        target: Figures of a GPU to plan for, instead of the layers' device.

    Raises:
        ValueError: As ``select_target_layers`` does; with ``compact=True`` also for a filter, and as
            ``analyze`` does.
    """
    if compact and filter is not None:
        raise ValueError(
            "compact=True takes no filter: compacting one layer changes the shapes of its neighbours"
        )
    record = record_of(model)
    if not compact and record and ticket is not None and is_ticket_of(record, ticket):
        return CompactedTargets(_nonzero_targets(model, ticket), None, "compacted before with this ticket")
    targets = select_target_layers(model, ticket, filter)
    possible = not (trainable or filter is not None or record) and is_bert_like(model)
    if compact is False or (compact is None and not possible):
        return CompactedTargets(targets, None)
    try:
        compaction = analyze(model, ticket, round_to=ROUND_TO, packed_for=tokens)
    except ValueError as error:
        if compact:
            raise
        return CompactedTargets(targets, None, f"not compacted: {error}")
    matrices = {matrix.key: matrix for matrix in compaction.matrices if matrix.compacted}
    if not matrices:
        return CompactedTargets(targets, None)
    layers = [_compacted(layer, matrices[layer.key]) if layer.key in matrices else layer for layer in targets]
    if compact is None and format == "auto":
        reason = _why_slower(targets, layers, target, tokens, tolerance)
        if reason is not None:
            return CompactedTargets(targets, None, f"not compacted: {reason}")
    if trainable:
        layers = [layer for layer in layers if not layer.mask.all()]
    configured = sum(matrix.linear.weight.numel() for matrix in compaction.matrices)
    stored = sum(matrix.matrix.weight.numel() for matrix in compaction.matrices)
    return CompactedTargets(tuple(layers), compaction, _note(configured, stored))


def compaction_note(model: nn.Module) -> str:
    """Return one line on the compaction of a model; "" if the model has its configured shapes."""
    weights = description_of(model).get("weights")
    return _note(weights["configured"], weights["stored"]) if weights else ""


def _why_slower(
    targets: Sequence[TargetLayer],
    compacted: Sequence[TargetLayer],
    target: gpu_roofline.Device | None,
    tokens: int,
    tolerance: str,
) -> str | None:
    """Return why layers are predicted to be slower after compaction; None if they are not.

    Blocks save time as long as they begin where panels do. Where columns are pruned in narrower groups than
    the rows of a block, compaction moves its rows to other panels.
    """
    changed = [pair for pair in zip(targets, compacted, strict=True) if pair[0] is not pair[1]]
    before = sum(_seconds(layer, target, tokens, tolerance) for layer, _ in changed)
    after = sum(_seconds(layer, target, tokens, tolerance) for _, layer in changed)
    if after <= before:
        return None
    return f"predicted {after * 1e6:.0f} us instead of {before * 1e6:.0f}, as the blocks would be cut up"


def _seconds(layer: TargetLayer, target: gpu_roofline.Device | None, tokens: int, tolerance: str) -> float:
    """Predict the seconds of a layer in its fastest format.

    Built-in costs decide on a CPU: the shapes of a model are not to depend on what else the machine does.
    """
    weight = layer.linear.weight
    if not weight.numel():
        return 0.0
    device = target or weight.device
    choice = format_candidates(layer.mask, weight.dtype, device, tokens, measure=False, tolerance=tolerance)
    return choice.predicted(choice.candidates[0]) or 0.0


def _compacted(layer: TargetLayer, compaction: MatrixCompaction) -> TargetLayer:
    return TargetLayer(
        key=layer.key,
        name=layer.name,
        linear=compacted_linear(compaction),
        mask=compaction.matrix.mask,
        removal_note=compaction.removal_note,
        configured=compaction.linear.weight.numel(),
    )


def _note(configured: int, stored: int) -> str:
    removed = configured - stored
    return f"{removed:,} of {configured:,} encoder weights removed ({removed / configured:.1%})"


def _nonzero_targets(model: nn.Module, ticket: Ticket) -> tuple[TargetLayer, ...]:
    """The ticket's layers in the shapes of an earlier compaction, with masks of their nonzero weights."""
    masks = {key: torch.as_tensor(resolve(model, key).weight) != 0 for key in ticket.masks}
    return select_target_layers(model, Ticket(masks))
