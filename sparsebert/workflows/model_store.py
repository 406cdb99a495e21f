"""Pruned models on disk: what they have changed in a dense model, without the weights that are 0."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from sparsebert.atomic import replacing
from sparsebert.bert import full_name
from sparsebert.tickets.ticket import Ticket


class ModelStore:
    """A pruned model in two files: its ticket, and the values that differ from the dense model's.

    Args:
        dense: The dense model.
        path: Path of the files without their endings.
    """

    def __init__(self, dense: Any, path: Path) -> None:
        self._dense = dense
        self._ticket = path.with_name(f"{path.name}.ticket.safetensors")
        self._values = path.with_name(f"{path.name}.safetensors")

    def load(self) -> tuple[Any, Ticket] | None:
        """Return the model and its ticket; None if they are not there."""
        if not (self._ticket.exists() and self._values.exists()):
            return None
        model, ticket = copy.deepcopy(self._dense), Ticket.load(self._ticket)
        state, masks = model.state_dict(), _masks(model, ticket)
        with torch.no_grad():
            for name, values in load_file(self._values).items():
                if name in masks:
                    state[name].zero_().masked_scatter_(masks[name], values)
                else:
                    state[name].copy_(values)
        return model, ticket

    def save(self, model: Any, ticket: Ticket) -> None:
        """Write the model; its weights are 0 where the ticket prunes them."""
        dense, masks = self._dense.state_dict(), _masks(model, ticket)
        changed = {
            name: value[masks[name]] if name in masks else value.contiguous()
            for name, value in model.state_dict().items()
            if not torch.equal(value, dense[name])
        }
        with replacing(self._values, sum(value.nbytes for value in changed.values())) as unfinished:
            save_file(changed, unfinished)
        ticket.save(self._ticket)


def _masks(model: Any, ticket: Ticket) -> dict[str, Tensor]:
    """Return the masks by the names that their weights have in the model's state."""
    return {f"{full_name(model, key)}.weight": mask for key, mask in ticket.masks.items()}
