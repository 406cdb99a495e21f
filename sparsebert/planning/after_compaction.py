"""The target layers of a model after compaction."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from sparsebert.bert import is_bert_like, resolve
from sparsebert.compaction.analyze import Change, CompactionPlan, prepare
from sparsebert.compaction.manifest import description_of, is_ticket_of, record_of
from sparsebert.planning.target_layers import Filter, TargetLayer, select_target_layers
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
    def dense_changes(self) -> tuple[Change, ...]:
        """Matrices that compaction shrinks and that stay dense."""
        keys = {layer.key for layer in self.layers}
        changes = self.compaction.changes if self.compaction else ()
        return tuple(change for change in changes if not change.whole and change.key not in keys)


def compacted_targets(
    model: nn.Module,
    ticket: Ticket | None,
    filter: Filter | None = None,
    *,
    tokens: int,
    compact: bool | None = None,
    trainable: bool = False,
) -> CompactedTargets:
    """Return the layers that `select_target_layers` selects, after compaction.

    A model that was compacted with the same ticket is not compacted again: the zeros in its weights then
    serve as masks.

    Args:
        model: The model; it is only read.
        ticket: The masks; without one, the zeros in the weights.
        filter: As in `select_target_layers`.
        tokens: Rows of x in a call.
        compact: True demands compaction and False forbids it. None compacts if the model allows it, there is
            no ``filter`` and the layers are not ``trainable``.
        trainable: Whether the kept weights will be trained; layers without pruned weights then stay dense.

    Raises:
        ValueError: See `select_target_layers`; with ``compact=True`` also `prepare`, or there is a filter.
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
        compaction = prepare(model, ticket, round_to=ROUND_TO, packed_for=tokens)
    except ValueError as error:
        if compact:
            raise
        return CompactedTargets(targets, None, f"not compacted: {error}")
    changes = {change.key: change for change in compaction.changes if not change.whole}
    if not changes:
        return CompactedTargets(targets, None)
    layers = [_compacted(layer, changes[layer.key]) if layer.key in changes else layer for layer in targets]
    if trainable:
        layers = [layer for layer in layers if not layer.mask.all()]
    configured = sum(change.linear.weight.numel() for change in compaction.changes)
    stored = sum(change.matrix.weight.numel() for change in compaction.changes)
    return CompactedTargets(tuple(layers), compaction, _note(configured, stored))


def compaction_note(model: nn.Module) -> str:
    """Return one line on the compaction of a model; "" if the model has its configured shapes."""
    weights = description_of(model).get("weights")
    return _note(weights["configured"], weights["stored"]) if weights else ""


def _compacted(layer: TargetLayer, change: Change) -> TargetLayer:
    return TargetLayer(
        key=layer.key,
        name=layer.name,
        linear=change.smaller_linear(),
        mask=change.matrix.mask,
        removal_note=change.removed,
        configured=change.linear.weight.numel(),
    )


def _note(configured: int, stored: int) -> str:
    removed = configured - stored
    return f"{removed:,} of {configured:,} encoder weights removed ({removed / configured:.1%})"


def _nonzero_targets(model: nn.Module, ticket: Ticket) -> tuple[TargetLayer, ...]:
    """The ticket's layers in the shapes of an earlier compaction, with masks of their nonzero weights."""
    masks = {key: torch.as_tensor(resolve(model, key).weight) != 0 for key in ticket.masks}
    return select_target_layers(model, Ticket(masks))
