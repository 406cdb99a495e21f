"""Export of tickets to ``torch.nn.utils.prune``; ``Ticket.from_torch_prune`` is the import."""

from __future__ import annotations

from torch import nn
from torch.nn.utils.prune import custom_from_mask

from sparsebert.bert import resolve
from sparsebert.tickets.ticket import Ticket


def to_torch_prune_(ticket: Ticket, model: nn.Module) -> nn.Module:
    """Prune a model in place with ``torch.nn.utils.prune``, for libraries that expect its buffers.

    A model that already carries such masks keeps the intersection of both.

    Returns:
        The same model.

    Raises:
        ValueError: For a ticket that does not fit, or one with removed modules, which
            ``torch.nn.utils.prune`` cannot express. The model stays unchanged.
    """
    refuse_removed_modules(ticket, "torch.nn.utils.prune")
    ticket.check(model)
    for name, masks in (("weight", ticket.masks), ("bias", ticket.bias_masks)):
        for key, mask in masks.items():
            module = resolve(model, key)
            custom_from_mask(module, name, mask.to(getattr(module, name).device))
    return model


def refuse_removed_modules(ticket: Ticket, target: str) -> None:
    """Raise ValueError for a ticket with removed modules, which ``target`` cannot express."""
    if ticket.removed:
        raise ValueError(f"{target} cannot express removed modules; the ticket removes {ticket.removed[0]}")
