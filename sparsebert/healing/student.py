"""The model in training: which parameters learn, and the masks that hold in every step."""

from __future__ import annotations

from types import TracebackType

import torch
from torch import Tensor, nn

from sparsebert.bert import base_model
from sparsebert.tickets.ticket import Ticket
from sparsebert.training.mask_enforcer import MaskEnforcer

_MOMENTS = ("exp_avg", "exp_avg_sq")


class Student:
    """A pruned model and its optimizer: Adam on the kept weights, biases and norms of the base model.

    The pooler and the task's head, which were never pruned, stay as they are.
    Used as a context manager, it restores on exit which parameters require gradients.

    Args:
        model: The model.
        ticket: Weights that stay zero.
        embeddings: Also train the embeddings.

    Raises:
        ValueError: The ticket does not fit the model.
    """

    def __init__(self, model: nn.Module, ticket: Ticket, embeddings: bool) -> None:
        self.model = model
        self._required = {parameter: parameter.requires_grad for parameter in model.parameters()}
        trained = {
            name: parameter
            for name, parameter in base_model(model).named_parameters()
            if not name.startswith("pooler.") and (embeddings or not name.startswith("embeddings."))
        }
        for parameter in model.parameters():
            parameter.requires_grad_(False)
        for parameter in trained.values():
            parameter.requires_grad_(True)
        self._trained = trained
        self._enforcer = MaskEnforcer(model, ticket)
        self._optimizer = self._new_optimizer()

    @property
    def device(self) -> torch.device:
        """Device of the model."""
        return next(self.model.parameters()).device

    def begin(self) -> None:
        """Forget the moments of earlier steps."""
        self._optimizer = self._new_optimizer()

    def step(self, learning_rate: float) -> None:
        """Take an optimizer step by the gradients so far, and clear them."""
        for group in self._optimizer.param_groups:
            group["lr"] = learning_rate
        self._optimizer.step()
        # Gradients of pruned weights are zero, so their moments are too; rounding never revives them.
        self._enforcer.zero_()
        self._optimizer.zero_grad(set_to_none=True)

    def weights(self) -> dict[str, Tensor]:
        """Return copies of the trained parameters."""
        return {name: parameter.detach().clone() for name, parameter in self._trained.items()}

    def set_weights(self, weights: dict[str, Tensor]) -> None:
        """Set the trained parameters."""
        with torch.no_grad():
            for name, parameter in self._trained.items():
                parameter.copy_(weights[name])
        self._enforcer.zero_()

    def moments(self) -> dict[str, Tensor]:
        """Return the optimizer's state: two moments and a count of each trained parameter."""
        return {
            f"{kind}.{name}": value
            for name, parameter in self._trained.items()
            for kind, value in self._optimizer.state.get(parameter, {}).items()
        }

    def set_moments(self, moments: dict[str, Tensor]) -> None:
        """Set the optimizer's state."""
        for name, parameter in self._trained.items():
            state = {
                kind: moments[f"{kind}.{name}"].to(parameter.device)
                for kind in (*_MOMENTS, "step")
                if f"{kind}.{name}" in moments
            }
            if state:
                self._optimizer.state[parameter] = state
        self._enforcer.zero_(self._optimizer)

    def __enter__(self) -> Student:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._enforcer.close()
        for parameter, required in self._required.items():
            parameter.requires_grad_(required)
            parameter.grad = None

    def _new_optimizer(self) -> torch.optim.Adam:
        return torch.optim.Adam(self._trained.values(), fused=True)
