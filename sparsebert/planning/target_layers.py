"""Which linear layers of a model are to become sparse, and with which masks."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sparsebert.bert import canonical_key, full_name, is_bert_like, require_module, resolve, structure
from sparsebert.compaction.live_rectangle import RectangleLinear
from sparsebert.nn.packability import Packability
from sparsebert.nn.sparse_linear import SparseLinear
from sparsebert.tickets.ticket import Ticket, require_ticket

Filter = Callable[[str, nn.Linear], bool]


@dataclass(frozen=True, eq=False)
class TargetLayer:
    """A linear layer to be made sparse.

    key         as in a ticket; in models without a known structure the full path
    name        full path in the model
    mask        bool [out, in] on the weight's device, True = keep
    bias_mask   bool [out], where the ticket prunes biases too
    removed     what compaction took out of the layer, for people to read
    configured  weights of the layer before that; None = as many as ``linear`` has
    """

    key: str
    name: str
    linear: nn.Linear
    mask: Tensor
    bias_mask: Tensor | None = None
    removed: str = ""
    configured: int | None = None

    @property
    def dense_nbytes(self) -> int:
        """Bytes of the dense layer as it was configured."""
        weight = self.linear.weight
        return weight.nbytes if self.configured is None else self.configured * weight.itemsize

    @property
    def shrinkage(self) -> float:
        """Weights as configured, as a multiple of those that are left."""
        return self.dense_nbytes / self.linear.weight.nbytes


def select(
    model: nn.Module, ticket: Ticket | None = None, filter: Filter | None = None
) -> tuple[TargetLayer, ...]:
    """The layers that the ticket or, without one, the zeros in the weights make sparse.

    ``filter(name, linear)`` narrows a ticket down, or picks among all linear layers of any model. Without
    either, the encoder and pooler of a BERT-like model, or every linear layer of another model, are searched
    for zeros.

    Layers that compaction cut to a rectangle are whole again here, with masks that keep nothing outside it.

    Raises ValueError for a model that is sparse already or has nothing to sparsify, a ticket that does not
    fit, and a layer that cannot be packed: weight tied to another module, on the meta device, quantised,
    parametrized, or a forward method that somebody has patched.
    """
    require_module(model)
    if filter is not None and not callable(filter):
        raise ValueError(f"filter is {filter!r}; a function of a layer's name and the layer is needed")
    for name, module in model.named_modules():
        if isinstance(module, SparseLinear):
            raise ValueError(f"{name or 'the model'} is sparse already: densify_ the model first")
    if ticket is not None:
        selected = list(_of_ticket(model, ticket, filter))
    else:
        selected = list(_of_zeros(model, filter))
        if not any(torch.count_nonzero(layer.mask) < layer.mask.numel() for layer in selected):
            selected = []
    if not selected:
        among = "picked by the filter " if filter else ""
        missing = (
            "in the ticket" if ticket is not None else "with zeros in its weight: prune it, or pass a ticket"
        )
        raise ValueError(f"nothing to sparsify: {type(model).__name__} has no linear layer {among}{missing}")
    return tuple(selected)


def _of_ticket(model: nn.Module, ticket: Ticket, filter: Filter | None) -> Iterator[TargetLayer]:
    require_ticket(ticket)
    ticket.check(model)
    packability, dead = Packability(model), ticket.dead_biases()
    for key, mask in ticket.masks.items():
        name, module = full_name(model, key), resolve(model, key)
        linear: nn.Module = module
        if isinstance(module, RectangleLinear):
            linear, mask = module.to_linear(), module.whole(mask.to(module.weight.device))
        if not isinstance(linear, nn.Linear):
            raise ValueError(f"{name} is a {type(linear).__name__}, not a linear layer")
        if filter is None or filter(name, linear):
            packability.require(name, linear)
            device = linear.weight.device
            yield TargetLayer(key, name, linear, mask.to(device), ~dead[key] if key in dead else None)


def _of_zeros(model: nn.Module, filter: Filter | None) -> Iterator[TargetLayer]:
    packability = Packability(model)
    for key, name, linear in _searched(model, filter):
        if filter is not None:
            if not filter(name, linear):
                continue
        elif type(linear) is not nn.Linear or packability.is_tied(linear):
            continue
        packability.require(name, linear)
        mask = linear.weight.detach() != 0
        if filter is not None or not mask.all():
            yield TargetLayer(key, name, linear, mask)


def _searched(model: nn.Module, filter: Filter | None) -> Iterator[tuple[str, str, nn.Linear]]:
    known = is_bert_like(model)
    if known and filter is None:
        found = structure(model)
        for key in (*found.linears, *([found.pooler] if found.pooler else [])):
            module = resolve(model, key)
            if isinstance(module, RectangleLinear):
                module = module.to_linear()
            if isinstance(module, nn.Linear):
                yield key, full_name(model, key), module
    else:
        for name, module in model.named_modules():
            if isinstance(module, nn.Linear):
                yield canonical_key(name) if known else name, name, module
