"""Dead weights stay exactly zero while a model trains; the masks live outside of it."""

from __future__ import annotations

from functools import partial
from types import TracebackType

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from sparsebert.tickets.ticket import Ticket
from sparsebert_kernels.bitmask import as_integers


class MaskKeeper:
    """Keeps what a ticket prunes at +0 through gradients, weight decay and momentum.

    The gradients of dead weights are set to zero as they arise, so that they count neither in the gradient's
    norm nor in a loss scaler's search for infinities; :meth:`zero_` after every optimizer step does the same
    to the weights. Before the first step it is told the optimizer, whose states from before the pruning it
    clears: with gradients of zero they stay so. Selected, never multiplied: a dead NaN or infinity becomes
    zero too. The model's modules and parameter names stay as they are.

    A context manager; leaving it takes the hooks away. Raises ValueError if the ticket does not fit.
    """

    def __init__(self, model: nn.Module, ticket: Ticket) -> None:
        # As bytes, -1 for kept: all ones in an integer of any width.
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
        """Set dead weights to +0, and in a given optimizer every state of their shape."""
        with torch.no_grad():
            for parameter, kept in self._kept:
                as_integers(parameter).bitwise_and_(kept)
                state = optimizer.state.get(parameter, {}) if optimizer is not None else {}
                for value in state.values():
                    if isinstance(value, Tensor) and value.shape == parameter.shape:
                        as_integers(value).bitwise_and_(kept)

    def close(self) -> None:
        """Take the hooks off the parameters."""
        for hook in self._hooks:
            hook.remove()
        self._hooks = []

    def __enter__(self) -> MaskKeeper:
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
