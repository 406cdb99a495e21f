"""Enforcement of a ticket in training: pruned weights stay exactly zero; masks stay outside the model."""

from __future__ import annotations

from functools import partial
from types import TracebackType

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from sparsebert.tickets.ticket import Ticket
from sparsebert_kernels.bitmask import as_integers


class MaskEnforcer:
    """Keeps the pruned weights of a ticket at +0 through gradients, weight decay and momentum.

    Hooks set the gradients of pruned weights to zero as soon as they are computed, so that they count neither
    in the gradient norm nor in a loss scaler's search for infinities. :meth:`zero_` zeroes the weights: call
    it after every optimizer step. Call it once with the optimizer before the first step too: it clears the
    optimizer states from before the pruning, and zero gradients then keep them at zero. Values are selected,
    never multiplied, so a pruned NaN or infinity becomes zero too. Modules and parameter names of the model
    do not change.

    Used as a context manager, it removes its hooks on exit.

    Raises:
        ValueError: The ticket does not fit the model.
    """

    def __init__(self, model: nn.Module, ticket: Ticket) -> None:
        # Masks as bytes, -1 for kept: -1 has all bits set in an integer of any width.
        self._kept = [
            (parameter, -mask.to(parameter.device, torch.int8)) for parameter, mask in ticket.targets(model)
        ]
        self._hooks = [
            parameter.register_hook(partial(_selected, kept))
            for parameter, kept in self._kept
            if parameter.requires_grad
        ]
        self.zero_()

    def zero_(self, optimizer: Optimizer | None = None) -> None:
        """Set pruned weights, and their entries in the optimizer's states, to +0."""
        with torch.no_grad():
            for parameter, kept in self._kept:
                as_integers(parameter).bitwise_and_(kept)
                state = optimizer.state.get(parameter, {}) if optimizer is not None else {}
                for value in state.values():
                    if isinstance(value, Tensor) and value.shape == parameter.shape:
                        as_integers(value).bitwise_and_(kept)

    def close(self) -> None:
        """Remove the hooks."""
        for hook in self._hooks:
            hook.remove()
        self._hooks = []

    def __enter__(self) -> MaskEnforcer:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


def _selected(kept: Tensor, gradient: Tensor) -> Tensor:
    return as_integers(gradient).bitwise_and(kept).view(gradient.dtype)
