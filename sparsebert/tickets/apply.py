"""Application of a ticket to a model: check that the two fit, and list the parameters to mask."""

from __future__ import annotations

import warnings
from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from sparsebert.bert import (
    encoder_count,
    full_name,
    is_bert_like,
    resolve,
    structure,
    weight_of,
    without_wrappers,
)
from sparsebert.conv1d import oriented
from sparsebert.tickets.provenance import weight_hash

if TYPE_CHECKING:
    from sparsebert.tickets.ticket import Ticket


def check(ticket: Ticket, model: nn.Module, *, weights: bool = False) -> None:
    """Raise ValueError, naming the first mismatch, unless the ticket fits; see ``Ticket.check``."""
    require_shapes(model, ticket.masks, ticket.bias_masks)
    origin = ticket.metadata.get("model", {})
    if "linears" in origin and is_bert_like(model):
        count = len(structure(model).linears)
        if origin["linears"] != count:
            raise ValueError(
                f"ticket of another model: made for {origin['linears']} encoder matrices, "
                f"{type(model).__name__} has {count}"
            )
    _refuse_one_side_of_tied_weights(ticket, model)
    _note_other_weights(ticket, model)
    if weights:
        if "weights" not in origin:
            raise ValueError("the ticket does not record which weights it was made for")
        if origin["weights"] != weight_hash(model):
            raise ValueError(
                f"ticket of another model: made for weights {origin['weights']} "
                f"(model {origin.get('id', 'unknown')}), not for {weight_hash(model)}"
            )


def _note_other_weights(ticket: Ticket, model: nn.Module) -> None:
    """Warn if the method of the ticket has changed the weights that stay, and the model has others."""
    origin = ticket.metadata.get("model", {})
    if "dense_weights" not in origin or any(weight_of(model, key).is_meta for key in ticket.masks):
        return
    if origin["weights"] != weight_hash(model):
        warnings.warn(
            f"{ticket.metadata.get('method')} changed the weights that this ticket keeps, and "
            f"{type(model).__name__} has others: without them its quality is that of the mask alone",
            stacklevel=4,
        )


def targets(ticket: Ticket, model: nn.Module) -> list[tuple[Tensor, Tensor]]:
    """Return each parameter that the ticket masks, with its mask; see ``Ticket.targets``."""
    check(ticket, model)
    weights = [
        (_parameter(model, key, "weight"), oriented(resolve(model, key), mask))
        for key, mask in ticket.masks.items()
    ]
    return weights + [
        (_parameter(model, key, "bias"), ~dead)
        for key, dead in ticket.dead_biases().items()
        if getattr(resolve(model, key), "bias", None) is not None
    ]


def require_shapes(model: nn.Module, masks: Mapping[str, Tensor], bias_masks: Mapping[str, Tensor]) -> None:
    """Raise ValueError for masks that do not have the shapes of the model's weights and biases.

    No value of a mask is read.
    """
    for key, mask in masks.items():
        _require_shape(model, key, mask, bias_masks.get(key))
    _require_one_encoder(model, masks)


def shape_text(tensor: Tensor) -> str:
    """Return the shape as messages print it: "768x3072"."""
    return "x".join(map(str, tensor.shape))


def _require_shape(model: nn.Module, key: str, mask: Tensor, bias_mask: Tensor | None) -> None:
    try:
        module = resolve(model, key)
    except ValueError as error:
        raise ValueError(f"ticket of another model: {error}") from None
    for name, expected in (("weight", mask), ("bias", bias_mask)):
        if expected is None:
            continue
        tensor = getattr(module, name, None)
        actual = shape_text(oriented(module, tensor)) if isinstance(tensor, Tensor) else "missing"
        if actual != shape_text(expected):
            raise ValueError(
                f"ticket of another model: {key}.{name} is {shape_text(expected)} in the ticket "
                f"and {actual} in {type(model).__name__}"
            )


def _require_one_encoder(model: nn.Module, keys: Iterable[str]) -> None:
    """Raise ValueError for keys that name matrices of several encoders in the model, such as two towers."""
    if (count := encoder_count(model)) < 2:
        return
    for key in keys:
        if without_wrappers(full_name(model, key)) != key:
            raise ValueError(
                f"{type(model).__name__} contains {count} encoders, and {key} does not say which; name its "
                "matrices by their full paths, or pass one of the encoders"
            )


def _refuse_one_side_of_tied_weights(ticket: Ticket, model: nn.Module) -> None:
    masks = {f"{full_name(model, key)}.weight": mask for key, mask in ticket.masks.items()}
    masks |= {f"{full_name(model, key)}.bias": mask for key, mask in ticket.bias_masks.items()}
    shared: dict[int, list[str]] = defaultdict(list)
    for name, parameter in model.named_parameters(remove_duplicate=False):
        # Meta and empty tensors have no address.
        shared[parameter.data_ptr() or id(parameter)].append(name)
    for names in shared.values():
        masked = next((name for name in names if name in masks), None)
        if len(names) == 1 or masked is None:
            continue
        for name in names:
            if name not in masks or not torch.equal(masks[name], masks[masked]):
                raise ValueError(
                    f"{masked} is tied to {name}: masking one prunes both; give both the same mask"
                )


def _parameter(model: nn.Module, key: str, name: str) -> Tensor:
    parameter = resolve(model, key)._parameters.get(name)
    if parameter is None:
        raise ValueError(
            f"{key}.{name} of {type(model).__name__} is not a plain parameter: "
            "undo its pruning, parametrization or packing first"
        )
    return parameter
