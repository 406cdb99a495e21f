"""The prunable structure of any model: layers to prune, their types and, on request, heads and neurons."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

from torch import nn

from sparsebert.bert import Structure, full_name, is_bert_like, structure
from sparsebert.linear_layers import Filter, prunable, type_of
from sparsebert.pruning.granularity import kinds_in
from sparsebert.pruning.read_matrices import loaded_weight
from sparsebert.pruning.unit_trace import trace_units


def prunable_structure(
    model: nn.Module,
    granularity: str = "element",
    *,
    include_pooler: bool = False,
    filter: Filter | None = None,
    data: Any = None,
) -> tuple[Structure, tuple[str, ...]]:
    """Return the structure of a model, restricted to the layers to prune, and the keys of these layers.

    The structure of a BERT-like model is known from its names. In other models, heads and neurons are located
    by :func:`sparsebert.pruning.unit_trace.trace_units`, if the granularity needs them.

    Raises:
        ValueError: As :func:`sparsebert.linear_layers.prunable` and ``trace_units``; or the layers to prune
            have no units of this granularity, or only a part of one.
    """
    keys = prunable(model, include_pooler, filter)
    if filter is None and is_bert_like(model):
        return structure(model), keys
    return structure_of(model, keys, granularity, data), keys


def structure_of(
    model: nn.Module, keys: Sequence[str], granularity: str = "element", data: Any = None
) -> Structure:
    """Return the structure of these layers of a model, with the units that the granularity needs.

    Raises:
        ValueError: As :func:`prunable_structure`.
    """
    keys = tuple(keys)
    kinds = {"neuron" if kind == "mlp" else kind for kind in kinds_in(granularity)}
    if is_bert_like(model):
        encoder = structure(model)
        encoder = replace(encoder, types={key: encoder.types.get(key, type_of(key)) for key in keys})
    else:
        encoder = _traced(model, keys, data) if kinds else _unstructured(keys)
    heads = _within(encoder.heads, keys, "head") if "head" in kinds else ()
    neurons = _within(encoder.neurons, keys, "neuron") if "neuron" in kinds else ()
    for kind, groups in (("head", heads), ("neuron", neurons)):
        if kind in kinds and not groups:
            raise ValueError(
                f"no {kind}s among the layers to prune of {type(model).__name__}: use granularity element, "
                "block, row or column"
            )
    return replace(encoder, linears=keys, heads=heads, neurons=neurons)


def _unstructured(keys: tuple[str, ...]) -> Structure:
    return Structure(
        prefix="",
        linears=keys,
        pooler=None,
        shared_inputs=(),
        neurons=(),
        heads=(),
        activations={},
        types={key: type_of(key) for key in keys},
        num_heads=0,
        head_size=0,
    )


def _traced(model: nn.Module, keys: tuple[str, ...], data: Any) -> Structure:
    for key in keys:
        loaded_weight(model, key)
    spans = trace_units(model, data)
    key_of = {full_name(model, key): key for key in keys}
    groups = {
        kind: [
            (tuple(key_of.get(name, name) for name in span.names), span)
            for span in spans
            if span.kind == kind
        ]
        for kind in ("head", "neuron")
    }
    folds = {key_of.get(name, name): fold for span in spans for name, fold in span.folds.items() if fold > 1}
    return replace(
        _unstructured(keys),
        heads=tuple(names for names, _ in groups["head"]),
        neurons=tuple(names for names, _ in groups["neuron"]),
        head_counts={names[0]: span.count for names, span in groups["head"]},
        folds=folds,
    )


def _within(groups: Iterable[Sequence[str]], keys: Sequence[str], kind: str) -> tuple[tuple[str, ...], ...]:
    """Return the groups whose matrices are all to be pruned; raise ValueError if some of them are not."""
    picked, whole = set(keys), []
    for group in groups:
        inside = picked.intersection(group)
        if len(inside) == len(group):
            whole.append(tuple(group))
        elif inside:
            missing = next(key for key in group if key not in picked)
            raise ValueError(
                f"the filter picks {min(inside)} without {missing}, but each {kind} has weights in both: "
                "pick all matrices of an attention or feed-forward network, or none"
            )
    return tuple(whole)
