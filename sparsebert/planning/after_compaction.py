"""The layers to be made sparse once what a ticket empties is taken out of the model."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from sparsebert.bert import is_bert_like, resolve
from sparsebert.compaction.analyze import Change, CompactionPlan, prepare, ticket_hash
from sparsebert.compaction.manifest import description_of, record_of
from sparsebert.planning.target_layers import Filter, TargetLayer, select
from sparsebert.tickets.ticket import Ticket

# Neurons and dimensions of heads come in whole vectors.
ROUND_TO = 8


@dataclass(frozen=True, eq=False)
class CompactedTargets:
    """What is left of a model to be packed.

    selected  layers in the ticket's order, of the shapes they will have
    prepared  what is taken out of the model; None if nothing is
    note      one line on it for the plan
    """

    selected: tuple[TargetLayer, ...]
    prepared: CompactionPlan | None
    note: str = ""

    @property
    def others(self) -> tuple[Change, ...]:
        """Matrices that get smaller without being packed."""
        keys = {layer.key for layer in self.selected}
        changes = self.prepared.changes if self.prepared else ()
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
    """The layers that `select` finds, after compaction for calls of so many ``tokens``.

    ``compact``: True demands it, False leaves every layer its shape, None takes out what goes if the model
    allows it, no ``filter`` narrows the ticket down and nothing is to be trained. Layers left full by it are
    not packed for training. A ticket that the model was compacted with stands for the zeros that it left.

    Raises ValueError as `select` does; with ``compact=True`` also for a filter and as `prepare` does.
    """
    if compact and filter is not None:
        raise ValueError("compact=True with a filter: what is taken out of one layer changes its neighbours")
    record = record_of(model)
    if not compact and record and ticket is not None and ticket_hash(ticket) == record["ticket"]:
        return CompactedTargets(_of_compacted(model, ticket), None, "compacted before with this ticket")
    selected = select(model, ticket, filter)
    possible = not (trainable or filter is not None or record) and is_bert_like(model)
    if compact is False or (compact is None and not possible):
        return CompactedTargets(selected, None)
    try:
        prepared = prepare(model, ticket, round_to=ROUND_TO, packed_for=tokens)
    except ValueError as error:
        if compact:
            raise
        return CompactedTargets(selected, None, f"nothing taken out: {error}")
    changes = {change.key: change for change in prepared.changes if not change.whole}
    if not changes:
        return CompactedTargets(selected, None)
    left = [_smaller(layer, changes[layer.key]) if layer.key in changes else layer for layer in selected]
    if trainable:
        left = [layer for layer in left if not layer.mask.all()]
    configured = sum(change.linear.weight.numel() for change in prepared.changes)
    rest = sum(change.matrix.weight.numel() for change in prepared.changes)
    return CompactedTargets(tuple(left), prepared, _note(configured, rest))


def _smaller(layer: TargetLayer, change: Change) -> TargetLayer:
    return TargetLayer(
        key=layer.key,
        name=layer.name,
        linear=change.smaller_linear(),
        mask=change.matrix.mask,
        removed=change.removed,
        configured=change.linear.weight.numel(),
    )


def note_of(model: nn.Module) -> str:
    """One line on what was taken out of a model; "" if it is as configured."""
    weights = description_of(model).get("weights")
    return _note(weights["configured"], weights["stored"]) if weights else ""


def _note(configured: int, left: int) -> str:
    gone = configured - left
    return f"{gone:,} of {configured:,} encoder weights taken out ({gone / configured:.1%})"


def _of_compacted(model: nn.Module, ticket: Ticket) -> tuple[TargetLayer, ...]:
    """The ticket's layers as its compaction left them: what is zero is pruned."""
    masks = {key: torch.as_tensor(resolve(model, key).weight) != 0 for key in ticket.masks}
    return select(model, Ticket(masks))
