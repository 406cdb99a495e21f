"""The linear layers of a model that become sparse, and their masks."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sparsebert.bert import (
    canonical_key,
    full_name,
    is_bert_like,
    is_of_adapter,
    require_module,
    resolve,
    structure,
)
from sparsebert.compaction.live_rectangle import RectangleLinear
from sparsebert.conv1d import as_linear, is_conv1d
from sparsebert.linear_layers import Filter, require_filter
from sparsebert.nn.packability import Packability, require_unpatched_forward
from sparsebert.nn.sparse_linear import SparseLinear
from sparsebert.tickets.ticket import Ticket, require_ticket


@dataclass(frozen=True, eq=False)
class TargetLayer:
    """A linear layer that becomes sparse.

    Attributes:
        key: The layer's key in a ticket; in models of unknown structure its full path.
        name: Full path in the model.
        linear: The dense layer, compacted if compaction applies to it.
        mask: bool [out, in] on the weight's device, True = keep.
        bias_mask: bool [out], True = keep, if the ticket prunes biases too.
        removal_note: The parts that compaction removed from the layer, as text; "" if none.
        configured: Number of weights before compaction; None if compaction leaves the layer as it is.
        conv1d: Class of the ``Conv1D`` that ``linear`` shares its weight with; None for a linear layer.
    """

    key: str
    name: str
    linear: nn.Linear
    mask: Tensor
    bias_mask: Tensor | None = None
    removal_note: str = ""
    configured: int | None = None
    conv1d: type[nn.Module] | None = None

    @property
    def dense_nbytes(self) -> int:
        """Bytes of the dense layer before compaction."""
        weight = self.linear.weight
        return weight.nbytes if self.configured is None else self.configured * weight.itemsize

    @property
    def shrinkage(self) -> float:
        """Number of weights before compaction divided by the number after it."""
        return self.dense_nbytes / self.linear.weight.nbytes


def outline(shape: tuple[int, int], like: Tensor, bias: nn.Parameter | None) -> nn.Linear:
    """Return a layer to plan with, without memory for its weight.

    Args:
        shape: (out, in).
        like: Any tensor in the layer's dtype on its device.
        bias: The layer's bias.
    """
    rows, columns = shape
    linear = nn.Linear(columns, rows, bias=False, device="meta")
    linear.weight = nn.Parameter(like.detach().new_zeros(()).expand(rows, columns))
    linear.register_parameter("bias", bias)
    return linear


def select_target_layers(
    model: nn.Module, ticket: Ticket | None = None, filter: Filter | None = None
) -> tuple[TargetLayer, ...]:
    """Return the layers that the ticket or, without one, the zeros in the weights make sparse.

    Layers that compaction reduced to their live rectangle are returned in their full shape, with masks that
    are False outside the rectangle.

    Args:
        model: Any model; it is only read.
        ticket: The masks. Without one, the encoder and pooler of a BERT-like model, or all linear layers of
            another model, are searched for zeros.
        filter: ``filter(name, linear) -> bool`` selects layers: among the ticket's or, without a ticket,
            among all linear layers of any model.

    Raises:
        ValueError: The model is sparse already or has nothing to sparsify, the ticket does not fit, or a
            layer cannot be packed: its weight is tied to another module, on the meta device, quantised or
            parametrized, or its forward method is patched.
    """
    require_module(model)
    require_filter(filter)
    for name, module in model.named_modules():
        if isinstance(module, SparseLinear):
            raise ValueError(f"{name or 'the model'} is sparse already: call densify_ first")
    if ticket is not None:
        targets = list(_of_ticket(model, ticket, filter))
    else:
        targets = list(_of_zeros(model, filter))
        if not any(torch.count_nonzero(layer.mask) < layer.mask.numel() for layer in targets):
            targets = []
    if not targets:
        picked = "picked by the filter " if filter else ""
        missing = (
            "in the ticket"
            if ticket is not None
            else f"with zeros in its weight{_why_skipped(model) or ': prune it, or pass a ticket'}"
        )
        raise ValueError(f"nothing to sparsify: {type(model).__name__} has no linear layer {picked}{missing}")
    return tuple(targets)


def _of_ticket(model: nn.Module, ticket: Ticket, filter: Filter | None) -> Iterator[TargetLayer]:
    require_ticket(ticket)
    ticket.check(model)
    packability, dead = Packability(model), ticket.dead_biases()
    for key, mask in ticket.masks.items():
        name, module = full_name(model, key), resolve(model, key)
        linear: nn.Module = module
        if isinstance(module, RectangleLinear):
            linear, mask = module.to_linear(), module.whole(mask.to(module.weight.device))
        elif is_conv1d(module):
            require_unpatched_forward(name, module)
            linear = as_linear(module)
        if not isinstance(linear, nn.Linear):
            raise ValueError(f"{name} is a {type(linear).__name__}, not a linear layer")
        if filter is None or filter(name, linear):
            packability.require(name, linear)
            device = linear.weight.device
            bias_mask = ~dead[key] if key in dead else None
            yield TargetLayer(key, name, linear, mask.to(device), bias_mask, conv1d=_conv1d(module))


def _conv1d(module: nn.Module) -> type[nn.Module] | None:
    return type(module) if is_conv1d(module) else None


def _why_skipped(model: nn.Module) -> str:
    """Return why layers with zeros were left out, which is that their weights are tied; or ""."""
    packability = Packability(model)
    for name, linear in model.named_modules():
        if isinstance(linear, nn.Linear) and packability.is_tied(linear) and not linear.weight.all():
            return f" that can be packed: {packability.tie(name, linear)}"
    return ""


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
            yield TargetLayer(key, name, linear, mask, conv1d=_conv1d(model.get_submodule(name)))


def _searched(model: nn.Module, filter: Filter | None) -> Iterator[tuple[str, str, nn.Linear]]:
    """Yield key, full name and layer of every linear layer to search for zeros."""
    bert_like = is_bert_like(model)
    if bert_like and filter is None:
        encoder = structure(model)
        for key in (*encoder.linears, *([encoder.pooler] if encoder.pooler else [])):
            module = resolve(model, key)
            if isinstance(module, RectangleLinear):
                module = module.to_linear()
            if isinstance(module, nn.Linear):
                yield key, full_name(model, key), module
    else:
        for name, module in model.named_modules():
            if is_conv1d(module):
                require_unpatched_forward(name, module)
                yield name, name, as_linear(module)
            elif isinstance(module, nn.Linear) and not is_of_adapter(model, name):
                yield canonical_key(name) if bert_like else name, name, module
