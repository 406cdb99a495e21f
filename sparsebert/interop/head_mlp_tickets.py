"""Tickets of whole heads and MLPs, the only tickets that bert-experiments and Super Tickets can express."""

from __future__ import annotations

from torch import nn

from sparsebert.bert import structure
from sparsebert.pruning.head_mlp_masks import UnitMasks
from sparsebert.tickets.ticket import Ticket


def whole_units(ticket: Ticket, model: nn.Module) -> UnitMasks:
    """Return the heads and MLPs that a ticket keeps, if they describe the ticket completely.

    Raises:
        ValueError: As :meth:`UnitMasks.of`, and for a ticket that masks other matrices or biases, or keeps
            the bias of a pruned MLP.
    """
    masks = UnitMasks.of(ticket, model)
    encoder = structure(model)
    pruned_mlps = {
        key
        for keys, kept in zip(encoder.neurons, masks.mlps.tolist(), strict=True)
        if not kept
        for key in keys
    }
    problem = ""
    if other_matrices := ticket.masks.keys() - set(encoder.linears):
        problem = f"masks {min(other_matrices)}"
    elif ticket.bias_masks:
        problem = f"masks biases of {min(ticket.bias_masks)}"
    elif kept_biases := pruned_mlps.difference(ticket.removed):
        problem = f"keeps the bias of {min(kept_biases)}, but none of its weights"
    if problem:
        raise ValueError(f"files of heads and MLPs cannot express this ticket: it {problem}")
    return masks
