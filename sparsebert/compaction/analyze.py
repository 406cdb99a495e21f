"""What is left of a model by a ticket: everything checked and computed before anything is changed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from sparsebert.bert import Structure, activation_of, base_model, full_name, resolve, structure
from sparsebert.compaction.attention_folding import Attention, compact_attention
from sparsebert.compaction.live_rectangle import exact_size, live_rectangle, rectangle_linear
from sparsebert.compaction.manifest import (
    VERSION,
    attach_record_,
    attention_of,
    is_ticket_of,
    narrow_to_,
    record_of,
)
from sparsebert.compaction.masked_matrix import Matrix
from sparsebert.compaction.narrow_attention import IMPLEMENTATIONS
from sparsebert.compaction.neurons import Neurons, compact_neurons
from sparsebert.compaction.thin_rows import without_thin_rows
from sparsebert.nn.module_swap import move_hooks, replace_module
from sparsebert.nn.packability import Packability, require_unpatched_forward
from sparsebert.tickets.ticket import Ticket, require_ticket

# An attention that keeps a larger share of its weights is likely to run dense: padding would cost it time.
MOST_TO_PAD = 0.5


@dataclass(frozen=True, eq=False)
class Change:
    """One encoder matrix.

    key, name  as in a ticket; full path in the model
    linear     the layer as it is
    matrix     what is left of it, in the shape that its neighbours need
    whole      nothing but the ticket's masking is to be done to it
    removed    what went, for people to read; "" if nothing
    """

    key: str
    name: str
    linear: nn.Linear
    matrix: Matrix
    whole: bool
    removed: str

    def smaller_linear(self) -> nn.Linear:
        """A layer of that matrix, with the flags of the old one and without its hooks."""
        weight, bias = self.matrix.kept(), self.matrix.bias
        rows, columns = weight.shape
        linear = nn.Linear(columns, rows, device="meta", dtype=weight.dtype)
        linear.weight, linear.bias = nn.Parameter(weight), nn.Parameter(bias)
        self._flag(linear)
        return linear

    def module(self, round_to: int) -> nn.Module:
        """The layer to run: of the live rectangle alone where that pays."""
        live = live_rectangle(self.matrix, round_to)
        if live is None:
            return self.linear if self.whole else self.smaller_linear()
        rectangle = rectangle_linear(self.matrix, live)
        self._flag(rectangle)
        return rectangle

    def _flag(self, module: Any) -> None:
        module.weight.requires_grad_(self.linear.weight.requires_grad)
        old = self.linear.bias
        module.bias.requires_grad_(self.linear.weight.requires_grad if old is None else old.requires_grad)
        module.train(self.linear.training)


@dataclass(frozen=True, eq=False)
class CompactionPlan:
    """A model, a ticket for it, and what it comes down to. ``ticket`` is pruned further where that was asked.

    attentions  path of each self-attention that changes -> what is left of it
    exact       weights in the rows and columns that keep one, before any rounding up
    source      hash of the ticket as given
    """

    model: nn.Module
    ticket: Ticket
    changes: tuple[Change, ...]
    attentions: dict[str, Attention]
    exact: int
    round_to: int
    min_row_weights: int
    source: str

    def install_(self) -> None:
        """Mask the model and put every smaller layer in its place."""
        modules = {change.key: change.module(self.round_to) for change in self.changes}
        self.ticket.apply_(self.model)
        for change in self.changes:
            module = modules[change.key]
            if module is not change.linear:
                move_hooks(change.linear, module)
                replace_module(self.model, change.name, module)
        self.shrink_attention_()

    def shrink_attention_(self) -> None:
        """Let the attentions run heads of the new widths, and the model remember what it is."""
        found = structure(self.model)
        for keys in found.heads:
            if attention := self.attentions.get(attention_of(keys)):
                narrow_to_(self.model, keys, attention.groups, found.head_size)
        attach_record_(self.model, self.record())

    def record(self) -> dict[str, Any]:
        """What :func:`sparsebert.compact.compaction_description` gives, but for the shapes of the layers."""
        return {
            "version": VERSION,
            "ticket": self.source,
            "round_to": self.round_to,
            "min_row_weights": self.min_row_weights,
            "weights": {
                "configured": sum(change.linear.weight.numel() for change in self.changes),
                "exact": self.exact,
            },
            "attention": {
                path: [vars(group) | {"heads": list(group.heads)} for group in attention.groups]
                for path, attention in self.attentions.items()
            },
            "linears": {change.key: list(change.linear.weight.shape) for change in self.changes},
        }


def prepare(
    model: nn.Module,
    ticket: Ticket | None = None,
    *,
    min_row_weights: int = 0,
    round_to: int = 1,
    packed_for: int = 0,
) -> CompactionPlan:
    """What `sparsebert.compact.compact_` will make of the model, with the same arguments and errors.

    ``packed_for``: tokens of a call, where what is left will be stored without its zeros; 0 for dense layers.
    """
    for name, number, least in (("min_row_weights", min_row_weights, 0), ("round_to", round_to, 1)):
        if not isinstance(number, int) or isinstance(number, bool) or number < least:
            raise ValueError(f"{name} is {number!r}; an integer of at least {least} is needed")
    found = structure(model)
    if ticket is None:
        ticket = Ticket.from_model(model)
    require_ticket(ticket)
    _refuse(model, found, ticket)
    shapes = [_linear(model, key).weight.shape for key in found.linears]
    widest, longest = max(map(max, shapes)), max(columns for _, columns in shapes)
    if round_to > widest:
        raise ValueError(f"round_to is {round_to}; the model is {widest} wide at most, so nothing could go")
    if min_row_weights > longest:
        raise ValueError(
            f"min_row_weights is {min_row_weights}; rows have {longest} weights at most, so all would go"
        )
    source = ticket.digest
    if min_row_weights:
        ticket = _thinned(ticket, min_row_weights, found)
    matrices = _matrices(model, ticket, found)
    left, exact = dict(matrices), 0
    notes: dict[str, str] = {}
    attentions: dict[str, Attention] = {}
    for keys in found.heads:
        attention, least = _heads_left(matrices, keys, found.num_heads, round_to, packed_for)
        exact += least
        if attention.groups:
            attentions[attention_of(keys)] = attention
            left |= dict(zip(keys, attention.matrices, strict=True))
            notes |= dict(zip(keys, _gone_of_heads(attention, found), strict=True))
    for up, down in found.neurons:
        activation = activation_of(model, up)
        neurons, least = _neurons_left(matrices[up], matrices[down], activation, round_to)
        exact += least
        if neurons.gone:
            left |= {up: neurons.up, down: neurons.down}
            notes |= dict.fromkeys((up, down), f"{neurons.gone} of {len(matrices[up].bias)} neurons")
    changes = tuple(
        Change(
            key=name,
            name=full_name(model, name),
            linear=_linear(model, name),
            matrix=left[name],
            whole=left[name] is matrices[name],
            removed=notes.get(name, ""),
        )
        for name in found.linears
    )
    return CompactionPlan(model, ticket, changes, attentions, exact, round_to, min_row_weights, source)


def _refuse(model: nn.Module, found: Structure, ticket: Ticket) -> None:
    """Raise ValueError with the reason why a model or ticket cannot be compacted, if there is one."""
    base: Any = base_model(model)
    if record := record_of(model):
        same = "this" if is_ticket_of(record, ticket) else "another"
        raise ValueError(f"{type(model).__name__} is compacted already, with {same} ticket: load it anew")
    config = base.config
    if getattr(config, "is_decoder", False) or getattr(config, "add_cross_attention", False):
        raise ValueError(f"{type(model).__name__} is a decoder: only encoders can be compacted")
    if (kind := config._attn_implementation) not in IMPLEMENTATIONS:
        raise ValueError(
            f"attention {kind!r} cannot run narrower heads: "
            'model.set_attn_implementation("sdpa") or "eager" first'
        )
    linears = {full_name(model, key): _linear(model, key) for key in found.linears}
    ticket.targets(model)
    packability = Packability(model)
    for name, linear in linears.items():
        packability.require(name, linear)
    for keys in found.heads:
        require_unpatched_forward(attention_of(keys), resolve(model, attention_of(keys)))
        rows = [len(_linear(model, key).weight) for key in keys[:3]]
        if set(rows) != {found.num_heads * found.head_size}:
            raise ValueError(
                f"{found.num_heads} heads of {found.head_size} do not divide the rows of "
                f"{attention_of(keys)}: {rows}"
            )


def _linear(model: nn.Module, key: str) -> nn.Linear:
    linear = resolve(model, key)
    if not isinstance(linear, nn.Linear):
        hint = ": densify_ the model first" if type(linear).__name__ == "SparseLinear" else ""
        raise ValueError(f"{key} is a {type(linear).__name__}, not a plain linear layer{hint}")
    return linear


def _thinned(ticket: Ticket, least: int, found: Structure) -> Ticket:
    return Ticket(
        without_thin_rows(ticket.masks, least, found.neurons, found.heads),
        bias_masks=ticket.bias_masks,
        removed=ticket.removed,
        metadata=ticket.metadata,
    )


@torch.no_grad()
def _matrices(model: nn.Module, ticket: Ticket, found: Structure) -> dict[str, Matrix]:
    dead = ticket.dead_biases()
    matrices = {}
    for key in found.linears:
        linear = _linear(model, key)
        weight, bias = linear.weight.detach(), None if linear.bias is None else linear.bias.detach()
        mask = ticket.masks.get(key)
        mask = torch.ones_like(weight, dtype=torch.bool) if mask is None else mask
        matrices[key] = Matrix.of(weight, mask, bias, dead.get(key))
    return matrices


def _heads_left(
    matrices: dict[str, Matrix], keys: Sequence[str], count: int, round_to: int, packed_for: int
) -> tuple[Attention, int]:
    """One attention, and the weights that it would have without rounding up."""
    query, key, value, output = (matrices[name] for name in keys)
    attention = compact_attention(query, key, value, output, count, round_to)
    if packed_for and _density(attention) < MOST_TO_PAD:
        attention = compact_attention(query, key, value, output, count, round_to, packed_for)
    least = attention
    if not attention.groups and round_to > 1:
        least = compact_attention(query, key, value, output, count)
    return attention, sum(map(exact_size, least.matrices))


def _density(attention: Attention) -> float:
    masks = [matrix.mask for matrix in attention.matrices]
    return sum(int(torch.count_nonzero(mask)) for mask in masks) / sum(mask.numel() for mask in masks)


def _neurons_left(
    up: Matrix, down: Matrix, activation: Callable[[Tensor], Tensor], round_to: int
) -> tuple[Neurons, int]:
    """One feed-forward network, and the weights that it would have without rounding up."""
    neurons = compact_neurons(up, down, activation, round_to)
    least = neurons
    if not neurons.gone and round_to > 1:
        least = compact_neurons(up, down, activation)
    return neurons, exact_size(least.up) + exact_size(least.down)


def _gone_of_heads(attention: Attention, found: Structure) -> list[str]:
    """What went from each of query, key, value and output."""
    count, size = found.num_heads, found.head_size
    gone = count - len(attention.heads)
    heads = f"{gone} of {count} heads" if gone else ""
    notes = []
    for width in ("score_width", "value_width"):
        kept = sum(getattr(head, width) for head in attention.heads)
        among = len(attention.heads) * size
        dimensions = f"{among - kept} of {among} dimensions" if among > kept else ""
        notes.append(", ".join(filter(None, (heads, dimensions))))
    return [notes[0], notes[0], notes[1], notes[1]]
