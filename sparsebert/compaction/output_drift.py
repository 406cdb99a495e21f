"""How far the answers of one model are from those of another, on given batches."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from sparsebert.tickets.ticket import Ticket


def outputs(
    model: nn.Module, batches: Sequence[Mapping[str, Any]], ticket: Ticket | None = None
) -> list[Tensor]:
    """The first tensor that the model answers each batch with: logits, or hidden states without a head.

    In eval mode, without gradients; ``ticket`` masks a copy of the model first. The model stays as it is.
    """
    if not batches:
        return []
    if ticket is not None:
        model = ticket.apply_(copy.deepcopy(model))
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.no_grad():
            return [_first(model(**batch)) for batch in batches]
    finally:
        for module, training in modes:
            module.training = training


def output_change(expected: Sequence[Tensor], found: Sequence[Tensor]) -> dict[str, float]:
    """``max`` and ``mean`` absolute change; ``changed``: share of other answers (argmax, last dim)."""
    changes = [(b - a).abs().double().flatten() for a, b in zip(expected, found, strict=True)]
    same = [(a.argmax(-1) == b.argmax(-1)).flatten() for a, b in zip(expected, found, strict=True)]
    all_changes = torch.cat(changes)
    return {
        "max": float(all_changes.max()),
        "mean": float(all_changes.mean()),
        "changed": 1 - float(torch.cat(same).double().mean()),
    }


def _first(answer: Any) -> Tensor:
    if isinstance(answer, Tensor):
        return answer
    logits = getattr(answer, "logits", None)
    return (
        logits if isinstance(logits, Tensor) else next(x for x in answer.to_tuple() if isinstance(x, Tensor))
    )
