"""A compacted model in plain values, and a model of those shapes from them."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from sparsebert.bert import Structure, base_model, full_name, is_bert_like, resolve, structure
from sparsebert.compaction.heads import HeadGroup, is_whole, total
from sparsebert.compaction.live_rectangle import RectangleLinear
from sparsebert.compaction.narrow_attention import shrink_attention_
from sparsebert.nn.module_swap import move_hooks, replace_module
from sparsebert.tickets.bits import pack_bits
from sparsebert.tickets.ticket import Ticket

VERSION = 1
_DAMAGED = "the description of a compacted model is damaged: load the folder anew"

# The base model carries its record under this name; copies and pickles take it along.
_RECORD = "_sparsebert_compaction"


def attention_of(keys: Sequence[str]) -> str:
    """Path of the self-attention that has these projections, (query, key, value, output)."""
    return keys[0].rpartition(".")[0]


def attach_record_(model: nn.Module, record: Mapping[str, Any]) -> None:
    """Let the base model know what it has become."""
    setattr(base_model(model), _RECORD, dict(record))


def record_of(model: nn.Module) -> dict[str, Any]:
    """What `attach_record_` was given; empty for a model as configured and for one of another family."""
    return getattr(base_model(model), _RECORD, {}) if is_bert_like(model) else {}


def is_ticket_of(record: Mapping[str, Any], ticket: Ticket) -> bool:
    """Whether the model with this record was compacted with this ticket."""
    return record["ticket"] in (ticket.digest, _earlier_digest(ticket))


def _earlier_digest(ticket: Ticket) -> str:
    """Return the digest that records held in place of `Ticket.digest` before version 0.2."""
    digest = hashlib.sha256()
    for kind, masks in (("masks", ticket.masks), ("bias_masks", ticket.bias_masks)):
        for key, mask in sorted(masks.items()):
            digest.update(f"{kind} {key} {tuple(mask.shape)}\n".encode())
            digest.update(pack_bits(mask).numpy().data)
    digest.update("\n".join(sorted(ticket.removed)).encode())
    return f"sha256:{digest.hexdigest()}"


def detach_record_(model: nn.Module) -> None:
    """Undo `attach_record_`."""
    delattr(base_model(model), _RECORD)


def description_of(model: nn.Module) -> dict[str, Any]:
    """See `sparsebert.compact.compaction_description`."""
    record = record_of(model)
    if not record:
        return {}
    linears, stored = {}, 0
    for key, configured in record["linears"].items():
        layer: Any = resolve(model, key)
        shape = [layer.out_features, layer.in_features]
        live = list(layer.weight.shape) if isinstance(layer, RectangleLinear) else shape
        stored += live[0] * live[1]
        if live != list(configured):
            sizes = {"configured": list(configured), "shape": shape}
            linears[key] = sizes | ({"live": live} if live != shape else {})
    return record | {"linears": linears, "weights": record["weights"] | {"stored": stored}}


def narrow_to_(model: nn.Module, keys: Sequence[str], groups: Sequence[HeadGroup], head_size: int) -> None:
    """Let the attention with these projections run these heads; where they are whole it can do so itself."""
    if is_whole(groups, head_size):
        return
    path = attention_of(keys)
    inside = [key for key in keys if attention_of((key,)) == path]
    names = [key.rpartition(".")[2] for key in inside]
    shrink_attention_(resolve(model, path), groups, head_size**-0.5, names)


def rebuild(model: nn.Module, description: Mapping[str, Any]) -> None:
    """See `sparsebert.compact.rebuild_`."""
    if not description:
        return
    if record_of(model):
        raise ValueError(f"{type(model).__name__} is compacted already: make it anew")
    found = structure(model)
    layers, groups = _checked(model, found, description)
    record = _record(description, {key: list(_linear(model, key).weight.shape) for key in found.linears})
    for key, (shape, live) in layers.items():
        old = _linear(model, key)
        new = _empty(old, shape, live)
        move_hooks(old, new)
        replace_module(model, full_name(model, key), new)
    for keys in found.heads:
        if attention_of(keys) in groups:
            narrow_to_(model, keys, groups[attention_of(keys)], found.head_size)
    attach_record_(model, record)


def _empty(old: nn.Linear, shape: Sequence[int], live: Sequence[int]) -> nn.Module:
    """A layer of [out, in] ``shape`` and unknown values, like ``old`` otherwise."""
    rows, columns = shape
    new: Any
    weight = nn.Parameter(old.weight.new_empty(*live), requires_grad=old.weight.requires_grad)
    bias = nn.Parameter(old.weight.new_empty(rows), requires_grad=old.weight.requires_grad)
    if list(live) != list(shape):
        new = RectangleLinear(columns, rows, weight, bias)
    else:
        new = nn.Linear(columns, rows, device="meta", dtype=old.weight.dtype)
        new.weight, new.bias = weight, bias
    return new.train(old.training)


def _checked(
    model: nn.Module, found: Structure, description: Mapping[str, Any]
) -> tuple[dict[str, tuple[list[int], list[int]]], dict[str, tuple[HeadGroup, ...]]]:
    """Shapes and live rectangles by key, and heads by attention.

    Raises ValueError naming what no compaction of this model can have made: nothing is ever larger than
    configured, and neighbours fit each other.
    """
    if description.get("version") != VERSION:
        raise ValueError(
            f"a compacted model of version {description.get('version')!r}; this one reads version {VERSION}"
        )
    try:
        layers = {
            key: (_pair(entry["shape"]), _pair(entry.get("live", entry["shape"])))
            for key, entry in description["linears"].items()
        }
        groups = {
            path: tuple(
                HeadGroup(tuple(map(_count, each["heads"])), _count(each["score"]), _count(each["value"]))
                for each in entries
            )
            for path, entries in description["attention"].items()
        }
    except (KeyError, TypeError, ValueError, AttributeError):
        raise ValueError(_DAMAGED) from None
    paths = {attention_of(keys) for keys in found.heads}
    for name in (layers.keys() - set(found.linears)) | (groups.keys() - paths):
        raise ValueError(f"compacted model of another architecture: {type(model).__name__} has no {name}")
    shapes = {key: list(_linear(model, key).weight.shape) for key in found.linears}
    for key, (shape, live) in layers.items():
        fits = all(0 < a <= b <= c for a, b, c in zip(live, shape, shapes[key], strict=True))
        if not fits:
            raise ValueError(
                f"compacted model of another architecture: {key} is {shape} with {live} live there, "
                f"{shapes[key]} in {type(model).__name__}"
            )
        shapes[key] = shape
    hidden = found.num_heads * found.head_size
    for keys in found.heads:
        heads = groups.get(attention_of(keys))
        score, value = (total(heads, kind) for kind in ("score", "value")) if heads else (hidden, hidden)
        expected = [score, score, value, value]
        if [shapes[keys[i]][i == 3] for i in range(4)] != expected or not _are_heads(heads, found):
            raise ValueError(f"the heads of {attention_of(keys)} do not fit its matrices")
    for up, down in found.neurons:
        if shapes[up][0] != shapes[down][1]:
            raise ValueError(f"{up} has {shapes[up][0]} neurons, {down} {shapes[down][1]}")
    return layers, groups


def require_rectangles(model: nn.Module) -> None:
    """Raise ValueError for a `RectangleLinear` whose rows or columns are no indices in order: files can say
    anything."""
    for name, module in model.named_modules():
        if isinstance(module, RectangleLinear) and not module.is_sound():
            raise ValueError(f"{name} is damaged: its rows or columns are no indices in order")


def _record(description: Mapping[str, Any], configured: Mapping[str, list[int]]) -> dict[str, Any]:
    """What the model is to remember of it. Raises ValueError for values that no compaction of it can have."""
    known: dict[str, Any] = {
        name: description.get(name) for name in ("ticket", "round_to", "min_row_weights", "weights")
    }
    weights, change = known["weights"], description.get("output_change")
    total = sum(rows * columns for rows, columns in configured.values())
    sound = (
        isinstance(known["ticket"], str)
        and isinstance(weights, Mapping)
        and all(map(_is_count, (known["round_to"], known["min_row_weights"])))
        and all(_is_count(weights.get(name)) for name in ("configured", "exact"))
        and (change is None or _is_change(change))
    )
    if not sound:
        raise ValueError(_DAMAGED)
    if weights["configured"] != total:
        raise ValueError(
            f"compacted model of another architecture: {weights['configured']} encoder weights there, "
            f"{total} here"
        )
    others = {"version": VERSION, "attention": description["attention"], "linears": dict(configured)}
    return known | others | ({"output_change": change} if change is not None else {})


def _count(value: Any) -> int:
    if not _is_count(value):
        raise TypeError
    return int(value)


def _is_count(value: Any) -> bool:
    return type(value) is int and value >= 0


def _is_change(change: Any) -> bool:
    return isinstance(change, Mapping) and all(
        isinstance(change.get(name), float | int) and math.isfinite(change[name])
        for name in ("max", "mean", "changed")
    )


def _pair(sizes: Any) -> list[int]:
    rows, columns = sizes
    if any(type(size) is not int for size in (rows, columns)):
        raise TypeError
    return [rows, columns]


def _are_heads(groups: Sequence[HeadGroup] | None, found: Structure) -> bool:
    heads = [head for group in groups or () for head in group.heads]
    within = all(0 <= head < found.num_heads for head in heads)
    return within and len(set(heads)) == len(heads) and all(group.heads for group in groups or ())


def _linear(model: nn.Module, key: str) -> nn.Linear:
    linear = resolve(model, key)
    if not isinstance(linear, nn.Linear):
        raise ValueError(f"{key} is a {type(linear).__name__}, not a plain linear layer")
    return linear
