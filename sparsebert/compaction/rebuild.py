"""Give a new model the shapes of a compacted one, from a description."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from sparsebert.bert import Structure, full_name, resolve, structure
from sparsebert.compaction.heads import HeadGroup, total
from sparsebert.compaction.live_rectangle import RectangleLinear
from sparsebert.compaction.manifest import VERSION, attach_record_, record_of
from sparsebert.compaction.narrow_attention import attention_path, shrink_attention_
from sparsebert.nn.module_swap import move_hooks, replace_module

_DAMAGED = "the compaction description is damaged; get a new copy of the folder"


def rebuild(model: nn.Module, description: Mapping[str, Any]) -> None:
    """Rebuild as ``sparsebert.compact.rebuild_`` describes."""
    if not description:
        return
    if record_of(model):
        raise ValueError(f"{type(model).__name__} is compacted already; create a new model from its config")
    encoder = structure(model)
    layers, groups = _checked(model, encoder, description)
    record = _checked_record(
        description, {key: list(_linear(model, key).weight.shape) for key in encoder.linears}
    )
    for key, (shape, live) in layers.items():
        old = _linear(model, key)
        new = _empty(old, shape, live)
        move_hooks(old, new)
        replace_module(model, full_name(model, key), new)
    for keys in encoder.heads:
        if attention_path(keys) in groups:
            shrink_attention_(model, keys, groups[attention_path(keys)], encoder.head_size)
    attach_record_(model, record)


def _empty(old: nn.Linear, shape: Sequence[int], live: Sequence[int]) -> nn.Module:
    """Return an uninitialised layer with the dtype, device and flags of ``old``.

    Args:
        old: The layer to replace.
        shape: [out, in].
        live: Shape of its live rectangle; equal to ``shape`` for a dense layer.
    """
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
    model: nn.Module, encoder: Structure, description: Mapping[str, Any]
) -> tuple[dict[str, tuple[list[int], list[int]]], dict[str, tuple[HeadGroup, ...]]]:
    """Read the shapes in a description, and check that compaction of this model can produce them.

    Returns:
        Key -> shape [out, in] and shape of the live rectangle, for each changed matrix; and path -> heads,
        for each changed attention.

    Raises:
        ValueError: A shape exceeds the configured one, or neighbouring matrices do not fit each other.
    """
    if type(description.get("version")) is not int or description["version"] != VERSION:
        raise ValueError(
            f"version of the compaction description must be {VERSION}, got {description.get('version')!r}; "
            "update sparsebert"
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
    paths = {attention_path(keys) for keys in encoder.heads}
    for name in (layers.keys() - set(encoder.linears)) | (groups.keys() - paths):
        raise ValueError(
            f"the compaction description is of another model: {type(model).__name__} has no {name}"
        )
    shapes = {key: list(_linear(model, key).weight.shape) for key in encoder.linears}
    for key, (shape, live) in layers.items():
        fits = all(0 < a <= b <= c for a, b, c in zip(live, shape, shapes[key], strict=True))
        if not fits:
            raise ValueError(
                f"the compaction description is of another model: its {key} is {shape} with {live} live, "
                f"that of {type(model).__name__} is {shapes[key]}"
            )
        shapes[key] = shape
    hidden = encoder.num_heads * encoder.head_size
    for keys in encoder.heads:
        heads = groups.get(attention_path(keys))
        score, value = (total(heads, kind) for kind in ("score", "value")) if heads else (hidden, hidden)
        expected = [score, score, value, value]
        if [shapes[keys[i]][i == 3] for i in range(4)] != expected or not _are_heads(heads, encoder):
            raise ValueError(f"the described heads of {attention_path(keys)} do not fit its matrices")
    for up, down in encoder.neurons:
        if shapes[up][0] != shapes[down][1]:
            raise ValueError(
                f"{up} and {down} must share their neurons, got {shapes[up][0]} and {shapes[down][1]}"
            )
    return layers, groups


def require_rectangles(model: nn.Module) -> None:
    """Raise ValueError unless every ``RectangleLinear`` has strictly increasing, valid rows and columns."""
    for name, module in model.named_modules():
        if isinstance(module, RectangleLinear) and not module.is_sound():
            raise ValueError(f"{name} is damaged: its rows or columns must be increasing indices")


def _checked_record(description: Mapping[str, Any], configured: Mapping[str, list[int]]) -> dict[str, Any]:
    """Return the record to attach; raise ValueError for values that compaction cannot produce."""
    fields: dict[str, Any] = {
        name: description.get(name) for name in ("ticket", "round_to", "min_row_weights", "weights")
    }
    weights, change = fields["weights"], description.get("output_change")
    total = sum(rows * columns for rows, columns in configured.values())
    sound = (
        isinstance(fields["ticket"], str)
        and isinstance(weights, Mapping)
        and all(map(_is_count, (fields["round_to"], fields["min_row_weights"])))
        and all(_is_count(weights.get(name)) for name in ("configured", "exact"))
        and (change is None or _is_change(change))
    )
    if not sound:
        raise ValueError(_DAMAGED)
    if weights["configured"] != total:
        raise ValueError(
            f"the compaction description is of another model: it has {weights['configured']} encoder "
            f"weights, this model has {total}"
        )
    shapes = {"version": VERSION, "attention": description["attention"], "linears": dict(configured)}
    return fields | shapes | ({"output_change": change} if change is not None else {})


def _count(value: Any) -> int:
    """Return a count; raise TypeError for anything else."""
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
    """Return a shape [out, in]; raise TypeError or ValueError for anything else."""
    rows, columns = sizes
    if any(type(size) is not int for size in (rows, columns)):
        raise TypeError
    return [rows, columns]


def _are_heads(groups: Sequence[HeadGroup] | None, encoder: Structure) -> bool:
    """Whether the groups are non-empty and share no head, and all their heads exist."""
    heads = [head for group in groups or () for head in group.heads]
    within = all(0 <= head < encoder.num_heads for head in heads)
    return within and len(set(heads)) == len(heads) and all(group.heads for group in groups or ())


def _linear(model: nn.Module, key: str) -> nn.Linear:
    linear = resolve(model, key)
    if not isinstance(linear, nn.Linear):
        raise ValueError(f"{key} must be an nn.Linear, got a {type(linear).__name__}")
    return linear
