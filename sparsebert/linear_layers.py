"""The linear layers that can be pruned in a model of any architecture."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import Any

from torch import nn

from sparsebert.bert import full_name, is_adapted, is_bert_like, key_in, require_module, structure
from sparsebert.bert import prunable as prunable_in_bert
from sparsebert.conv1d import as_linear, is_conv1d

Filter = Callable[[str, nn.Linear], bool]


def prunable(model: nn.Module, include_pooler: bool = False, filter: Filter | None = None) -> tuple[str, ...]:
    """Return the keys of the linear layers to prune, in model order.

    Args:
        model: Any model.
        include_pooler: Include the pooler's matrix of a BERT-like model.
        filter: ``filter(name, linear) -> bool`` selects among all linear layers of the model. Without one,
            they are the encoder matrices of a BERT-like model. In another model they are the linear layers in
            its stacks of layers (``nn.ModuleList``) whose weights are not tied, which leaves out embeddings,
            poolers and heads; in a model without stacks they are all linear layers.

    Raises:
        ValueError: There is no such layer, the model is itself one, or it has no pooler to include; or a
            filter and ``include_pooler`` are passed together.
    """
    require_module(model)
    require_filter(filter)
    if is_conv1d(model) or _is_linear(model):
        raise ValueError(
            f"the model is itself a {type(model).__name__}: put it into an nn.Sequential to prune it"
        )
    if filter is not None:
        if include_pooler:
            raise ValueError("a filter decides about the pooler too: omit include_pooler")
        picked = _keys(model, [name for name, linear in linear_layers(model) if filter(name, linear)])
        if not picked:
            raise ValueError(
                f"the filter picks none of the linear layers of {type(model).__name__}{_examples(model)}"
            )
        return picked
    if is_bert_like(model):
        return prunable_in_bert(model, include_pooler)
    if include_pooler:
        raise ValueError(
            f"{type(model).__name__} has no pooler to include: it is not a BERT, RoBERTa, DistilBERT or "
            "ELECTRA model; pass a filter"
        )
    keys = unfiltered(model)
    if not keys:
        raise ValueError(f"{type(model).__name__} has no linear layer to prune{tied_note(model)}")
    return keys


def require_filter(filter: Any) -> None:
    """Raise ValueError unless ``filter`` is None or can be called."""
    if filter is not None and not callable(filter):
        raise ValueError(f"filter must be a function of a layer's name and the layer, got {filter!r}")


def unfiltered(model: nn.Module) -> tuple[str, ...]:
    """Return the keys that :func:`prunable` returns without a filter; () instead of an error."""
    if is_bert_like(model):
        return structure(model).linears
    stacks = tuple(f"{name}." for name, module in model.named_modules() if isinstance(module, nn.ModuleList))
    names = _names_of_weights(model)
    layers = [name for name, linear in linear_layers(model) if not _is_tied(linear, names)]
    stacked = [name for name in layers if name.startswith(stacks)] if stacks else []
    return _keys(model, stacked or layers)


def linear_layers(model: nn.Module) -> Iterator[tuple[str, nn.Linear]]:
    """Yield full name and module of every linear layer, plain, wrapped or sparse; of a ``Conv1D`` of
    transformers, the linear layer that shares its weight.

    Layers inside a layer, such as the matrices of an adapter, are left out, and so are empty layers,
    subclasses that compute something else, and the output projection of ``nn.MultiheadAttention``, whose
    forward method does not run.
    """
    inside: str | None = None
    for name, module in model.named_modules():
        if inside is not None and name.startswith(inside):
            continue
        if is_conv1d(module):
            yield name, as_linear(module)
        elif _is_linear(module):
            inside = f"{name}."
            yield name, module


def tied_note(model: nn.Module) -> str:
    """Return the reason why a model whose linear layers are all tied has nothing to prune, or ""."""
    names = _names_of_weights(model)
    for name, linear in linear_layers(model):
        if _is_tied(linear, names):
            others = [each for each in names[id(linear._parameters["weight"])] if each != f"{name}.weight"]
            return f": {name}.weight is tied to {', '.join(others)}, and packing would untie them"
    return ""


def type_of(key: str) -> str:
    """Return the type of a matrix in a model of unknown structure: its path with all numbers left out."""
    return re.sub(r"\d+", "*", key)


def _keys(model: nn.Module, names: list[str]) -> tuple[str, ...]:
    """Return the keys of modules; raise ValueError if a key does not tell two modules apart."""
    keys = tuple(key_in(model, name) for name in names)
    for name, key in zip(names, keys, strict=True):
        other = full_name(model, key)
        if other != name and not (is_adapted(other) and other.startswith(f"{name}.")):
            raise ValueError(
                f"{type(model).__name__} contains several encoders: {name} and {other} have the same key, "
                f"{key}; pass one of the encoders"
            )
    return keys


def _is_linear(module: nn.Module) -> bool:
    if isinstance(module, nn.Linear):
        if not module.in_features * module.out_features:
            return False
        is_unused = isinstance(module, nn.modules.linear.NonDynamicallyQuantizableLinear)
        return type(module).forward is nn.Linear.forward and not is_unused
    sizes = getattr(module, "in_features", None), getattr(module, "out_features", None)
    # Sparse layers and adapters' wrappers have the sizes and, as a property, the weight of a linear layer.
    return all(isinstance(size, int) for size in sizes) and isinstance(
        getattr(type(module), "weight", None), property
    )


def _is_tied(linear: nn.Module, names: dict[int, list[str]]) -> bool:
    weight = linear._parameters.get("weight")
    return weight is not None and len(names[id(weight)]) > 1


def _names_of_weights(model: nn.Module) -> dict[int, list[str]]:
    names: dict[int, list[str]] = defaultdict(list)
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names[id(parameter)].append(name)
    return names


def _examples(model: nn.Module) -> str:
    names = [name for name, _ in linear_layers(model)]
    return f", such as {names[0]}" if names else ": it has none"
