"""Compute the compaction of a model by a ticket; nothing in the model changes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from sparsebert.bert import (
    Structure,
    activation_of,
    base_model,
    full_name,
    is_adapted,
    resolve,
    structure,
)
from sparsebert.compaction.attention_folding import Attention, compact_attention
from sparsebert.compaction.layer_probe import require_known_layers
from sparsebert.compaction.live_rectangle import exact_size
from sparsebert.compaction.manifest import is_ticket_of, record_of
from sparsebert.compaction.masked_matrix import Matrix
from sparsebert.compaction.narrow_attention import IMPLEMENTATIONS, attention_path
from sparsebert.compaction.neurons import Neurons, compact_neurons
from sparsebert.compaction.thin_rows import without_thin_rows
from sparsebert.nn.packability import Packability, require_unpatched_forward
from sparsebert.tickets.ticket import Ticket, require_ticket

# Above this density the projections of an attention probably run dense, and padding would cost time.
MAX_DENSITY_TO_PAD = 0.5


@dataclass(frozen=True, eq=False)
class MatrixCompaction:
    """The compaction of one encoder matrix.

    Attributes:
        key: As in a ticket.
        name: Full path in the model.
        linear: The present layer.
        matrix: The compacted matrix, in the shape that its neighbours need.
        compacted: Whether compaction changes the matrix; otherwise the ticket only masks it.
        removal_note: What compaction removes, in words; "" if nothing.
    """

    key: str
    name: str
    linear: nn.Linear
    matrix: Matrix
    compacted: bool
    removal_note: str


@dataclass(frozen=True, eq=False)
class CompactionPlan:
    """The compaction of a model, ready to install.

    Attributes:
        model: The model, unchanged.
        ticket: The ticket, with thin rows pruned as well where ``min_row_weights`` demands it.
        matrices: All encoder matrices, in model order.
        attentions: Path of each self-attention that changes -> its compaction.
        exact: Encoder weights in live rows and columns, before any rounding up.
        round_to: As passed to ``analyze``.
        min_row_weights: As passed to ``analyze``.
        source: Digest of the ticket as passed to ``analyze``.
    """

    model: nn.Module
    ticket: Ticket
    matrices: tuple[MatrixCompaction, ...]
    attentions: dict[str, Attention]
    exact: int
    round_to: int
    min_row_weights: int
    source: str


def analyze(
    model: nn.Module,
    ticket: Ticket | None = None,
    *,
    min_row_weights: int = 0,
    round_to: int = 1,
    packed_for: int = 0,
) -> CompactionPlan:
    """Plan what ``sparsebert.compact.compact_`` does to the model.

    Args:
        model: The model; it is only read.
        ticket: The masks; without one, the zeros in the weights.
        min_row_weights: As for ``sparsebert.compact.compact_``.
        round_to: As for ``sparsebert.compact.compact_``.
        packed_for: Tokens of a call if the compacted matrices will be stored without their zeros; 0 for dense
            layers.

    Raises:
        ValueError: As ``sparsebert.compact.compact_``.
    """
    encoder = structure(model)
    if ticket is None:
        ticket = Ticket.from_model(model)
    require_ticket(ticket)
    _require_integer("min_row_weights", min_row_weights, 0)
    _require_integer("round_to", round_to, 1)
    _require_compactable(model, encoder, ticket)
    _require_within_widths(model, encoder, min_row_weights, round_to)
    source = ticket.digest
    if min_row_weights:
        ticket = _without_thin_rows(ticket, min_row_weights, encoder)
    matrices = _matrices(model, ticket, encoder)
    compacted, exact = dict(matrices), 0
    notes: dict[str, str] = {}
    attentions: dict[str, Attention] = {}
    for keys in encoder.heads:
        attention, size = _compacted_heads(matrices, keys, encoder.num_heads, round_to, packed_for)
        exact += size
        if attention.groups:
            attentions[attention_path(keys)] = attention
            compacted |= dict(zip(keys, attention.matrices, strict=True))
            notes |= dict(zip(keys, _notes_on_heads(attention, encoder), strict=True))
    for up, down in encoder.neurons:
        activation = activation_of(model, up)
        neurons, size = _compacted_neurons(matrices[up], matrices[down], activation, round_to)
        exact += size
        if neurons.removed:
            compacted |= {up: neurons.up, down: neurons.down}
            notes |= dict.fromkeys((up, down), f"{neurons.removed} of {len(matrices[up].bias)} neurons")
    all_matrices = tuple(
        MatrixCompaction(
            key=key,
            name=full_name(model, key),
            linear=_linear(model, key),
            matrix=compacted[key],
            compacted=compacted[key] is not matrices[key],
            removal_note=notes.get(key, ""),
        )
        for key in encoder.linears
    )
    return CompactionPlan(model, ticket, all_matrices, attentions, exact, round_to, min_row_weights, source)


def _require_integer(name: str, number: object, minimum: int) -> None:
    if not isinstance(number, int) or isinstance(number, bool) or number < minimum:
        raise ValueError(f"{name} must be an integer of at least {minimum}, got {number!r}")


def _require_within_widths(model: nn.Module, encoder: Structure, min_row_weights: int, round_to: int) -> None:
    """Raise ValueError for numbers that would remove nothing, or everything."""
    shapes = [_linear(model, key).weight.shape for key in encoder.linears]
    widest, longest = max(map(max, shapes)), max(columns for _, columns in shapes)
    if round_to > widest:
        raise ValueError(f"round_to must be at most the model's largest width, {widest}, got {round_to}")
    if min_row_weights > longest:
        raise ValueError(
            f"min_row_weights must be at most the longest row, {longest} weights, got {min_row_weights}"
        )


def _require_compactable(model: nn.Module, encoder: Structure, ticket: Ticket) -> None:
    """Raise ValueError for a model that cannot be compacted, or a ticket that does not fit."""
    name = type(model).__name__
    if record := record_of(model):
        which = "this" if is_ticket_of(record, ticket) else "another"
        raise ValueError(f"{name} is compacted already, with {which} ticket; load the model anew")
    config: Any = base_model(model).config
    if getattr(config, "is_decoder", False) or getattr(config, "add_cross_attention", False):
        raise ValueError(f"{name} is a decoder; only encoders can be compacted")
    if (kind := config._attn_implementation) not in IMPLEMENTATIONS:
        raise ValueError(
            f"attention {kind!r} cannot run narrow heads; "
            'call model.set_attn_implementation("sdpa") or ("eager") first'
        )
    linears = {full_name(model, key): _linear(model, key) for key in encoder.linears}
    ticket.targets(model)
    packability = Packability(model)
    for path, linear in linears.items():
        if is_adapted(path):
            raise ValueError(f"{path} has an adapter, whose shape is fixed: merge and unload it first")
        packability.require(path, linear)
    for keys in encoder.heads:
        path = attention_path(keys)
        require_unpatched_forward(path, resolve(model, path))
        rows = [len(_linear(model, key).weight) for key in keys[:3]]
        if set(rows) != {encoder.num_heads * encoder.head_size}:
            raise ValueError(
                f"{encoder.num_heads} heads of {encoder.head_size} do not divide the rows of {path}: {rows}"
            )
    require_known_layers(model, encoder)


def _linear(model: nn.Module, key: str) -> nn.Linear:
    linear = resolve(model, key)
    if not isinstance(linear, nn.Linear):
        hint = "; densify_ the model first" if type(linear).__name__ == "SparseLinear" else ""
        raise ValueError(f"{key} must be an nn.Linear, got a {type(linear).__name__}{hint}")
    return linear


def _without_thin_rows(ticket: Ticket, min_row_weights: int, encoder: Structure) -> Ticket:
    return Ticket(
        without_thin_rows(ticket.masks, min_row_weights, encoder.neurons, encoder.heads),
        bias_masks=ticket.bias_masks,
        removed=ticket.removed,
        metadata=ticket.metadata,
    )


@torch.no_grad()
def _matrices(model: nn.Module, ticket: Ticket, encoder: Structure) -> dict[str, Matrix]:
    dead = ticket.dead_biases()
    matrices = {}
    for key in encoder.linears:
        linear = _linear(model, key)
        weight, bias = linear.weight.detach(), None if linear.bias is None else linear.bias.detach()
        mask = ticket.masks.get(key)
        mask = torch.ones_like(weight, dtype=torch.bool) if mask is None else mask
        matrices[key] = Matrix.of(weight, mask, bias, dead.get(key))
    return matrices


def _compacted_heads(
    matrices: dict[str, Matrix], keys: Sequence[str], num_heads: int, round_to: int, packed_for: int
) -> tuple[Attention, int]:
    """Compact one attention; return it and its number of weights without rounding up."""
    query, key, value, output = (matrices[name] for name in keys)
    attention = compact_attention(query, key, value, output, num_heads, round_to)
    if packed_for and _density(attention) < MAX_DENSITY_TO_PAD:
        attention = compact_attention(query, key, value, output, num_heads, round_to, packed_for)
    exact = attention
    if not attention.groups and round_to > 1:
        exact = compact_attention(query, key, value, output, num_heads)
    return attention, sum(map(exact_size, exact.matrices))


def _density(attention: Attention) -> float:
    masks = [matrix.mask for matrix in attention.matrices]
    return sum(int(torch.count_nonzero(mask)) for mask in masks) / sum(mask.numel() for mask in masks)


def _compacted_neurons(
    up: Matrix, down: Matrix, activation: Callable[[Tensor], Tensor], round_to: int
) -> tuple[Neurons, int]:
    """Compact one feed-forward network; return it and its number of weights without rounding up."""
    neurons = compact_neurons(up, down, activation, round_to)
    exact = neurons
    if not neurons.removed and round_to > 1:
        exact = compact_neurons(up, down, activation)
    return neurons, exact_size(exact.up) + exact_size(exact.down)


def _notes_on_heads(attention: Attention, encoder: Structure) -> list[str]:
    """Return the removal notes of query, key, value and output."""
    removed = encoder.num_heads - len(attention.heads)
    heads = f"{removed} of {encoder.num_heads} heads" if removed else ""
    notes = []
    for width in ("score_width", "value_width"):
        kept = sum(getattr(head, width) for head in attention.heads)
        configured = len(attention.heads) * encoder.head_size
        dimensions = f"{configured - kept} of {configured} dimensions" if configured > kept else ""
        notes.append(", ".join(filter(None, (heads, dimensions))))
    return [notes[0], notes[0], notes[1], notes[1]]
