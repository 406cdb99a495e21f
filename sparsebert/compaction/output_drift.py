"""Measure how much a model's outputs change, on batches of examples."""

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
    """Compute the model's output for each batch, in eval mode and without gradients.

    Args:
        model: The model; it does not change.
        batches: Keyword arguments of the model, one mapping per batch.
        ticket: Masks to apply to a copy of the model first.

    Returns:
        The logits of each batch, or the hidden states if the model has no head.
    """
    if not batches:
        return []
    if ticket is not None:
        model = ticket.apply_(copy.deepcopy(model))
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.no_grad():
            return [_main_output(model(**batch)) for batch in batches]
    finally:
        for module, training in modes:
            module.training = training


def output_change(before: Sequence[Tensor], after: Sequence[Tensor]) -> dict[str, float]:
    """Compare the outputs of the same batches before and after a change.

    Returns:
        ``max`` and ``mean`` of the absolute change, and ``changed``, the share of predictions (argmax over
        the last dimension) that changed.
    """
    changes = [(b - a).abs().double().flatten() for a, b in zip(before, after, strict=True)]
    same = [(a.argmax(-1) == b.argmax(-1)).flatten() for a, b in zip(before, after, strict=True)]
    all_changes = torch.cat(changes)
    return {
        "max": float(all_changes.max()),
        "mean": float(all_changes.mean()),
        "changed": 1 - float(torch.cat(same).double().mean()),
    }


def _main_output(output: Any) -> Tensor:
    """Return the logits of a model's output, or its first tensor if it has none."""
    if isinstance(output, Tensor):
        return output
    logits = getattr(output, "logits", None)
    return (
        logits if isinstance(logits, Tensor) else next(x for x in output.to_tuple() if isinstance(x, Tensor))
    )
