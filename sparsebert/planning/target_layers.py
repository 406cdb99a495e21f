"""Which linear layers of a model are to become sparse, and with which masks."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sparsebert.bert import canonical_key, full_name, is_bert_like, require_module, resolve, structure
from sparsebert.compaction.live_rectangle import RectangleLinear
from sparsebert.cost.candidates import STORED
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
    unpackable, dead = Unpackable(model), ticket.dead_biases()
    for key, mask in ticket.masks.items():
        name, module = full_name(model, key), resolve(model, key)
        linear: nn.Module = module
        if isinstance(module, RectangleLinear):
            linear, mask = module.to_linear(), module.whole(mask.to(module.weight.device))
        if not isinstance(linear, nn.Linear):
            raise ValueError(f"{name} is a {type(linear).__name__}, not a linear layer")
        if filter is None or filter(name, linear):
            unpackable.refuse(name, linear)
            device = linear.weight.device
            yield TargetLayer(key, name, linear, mask.to(device), ~dead[key] if key in dead else None)


def _of_zeros(model: nn.Module, filter: Filter | None) -> Iterator[TargetLayer]:
    unpackable = Unpackable(model)
    for key, name, linear in _searched(model, filter):
        if filter is not None:
            if not filter(name, linear):
                continue
        elif type(linear) is not nn.Linear or unpackable.tied(linear):
            continue
        unpackable.refuse(name, linear)
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


class Unpackable:
    """What stands in the way of packing a layer of this model."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.names: dict[int, list[str]] = defaultdict(list)
        for name, parameter in model.named_parameters(remove_duplicate=False):
            self.names[id(parameter)].append(name)

    def tied(self, linear: nn.Linear) -> bool:
        return len(self.names[id(linear.weight)]) > 1

    def refuse(self, name: str, linear: nn.Linear) -> None:
        """Raises ValueError naming the reason, if there is one."""
        if linear is self.model:
            raise ValueError("the model is itself a linear layer: use SparseLinear.from_linear")
        if "weight" not in linear._parameters:
            raise ValueError(
                f"{name}.weight is no plain parameter: undo its parametrization, "
                "or call torch.nn.utils.prune.remove, first"
            )
        weight = linear.weight
        if type(linear) is not nn.Linear:
            raise ValueError(f"{name} is a {type(linear).__name__}; only a plain nn.Linear can be packed")
        if type(weight) is not nn.Parameter or weight.layout != torch.strided or weight.dtype not in STORED:
            raise ValueError(
                f"{name} is quantised or holds a special tensor ({type(weight).__name__}, {weight.dtype}, "
                f"{weight.layout}): a plain floating-point weight is needed"
            )
        if weight.is_meta:
            raise ValueError(f"{name} is on the meta device: load its weights first")
        if not weight.numel():
            raise ValueError(f"{name} has an empty weight, {list(weight.shape)}")
        if self.tied(linear):
            others = ", ".join(sorted({*self.names[id(weight)]} - {f"{name}.weight"}))
            raise ValueError(f"{name}.weight is tied to {others}: packing would untie them")
        if "forward" in linear.__dict__:
            raise ValueError(
                f"the forward method of {name} is patched, as hooks of accelerate do: remove that first"
            )
