"""Locate the heads and neurons of any model by running it once on stand-ins of its linear layers.

Every linear layer returns a new random leaf of the autograd graph in place of its product. The gradient of a
layer's input then tells which features of which earlier layers it depends on: feature i of a down-projection
depends on feature i of the up-projection, and a head of an output projection on the rows of this head in
query, key and value. Neither names nor classes matter, and no weight is read.
"""

from __future__ import annotations

import inspect
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from sparsebert.linear_layers import linear_layers
from sparsebert.nn.skeleton import skeleton, stand_in_

# Slices of a matrix that computes several projections: gate and up; query, key and value.
_FOLDS = (1, 2, 3)
_EXAMPLES, _TOKENS = 2, 5
_SAMPLES = 4000  # of a sound: a dozen frames


@dataclass(frozen=True)
class UnitSpan:
    """The matrices that share units.

    Attributes:
        names: Full names of the matrices whose rows belong to units, and last that of the matrix whose
            columns do.
        count: Number of units.
        folds: Name -> number of equal slices of the rows, each with a part of every unit.
        kind: "neuron" or "head".
    """

    names: tuple[str, ...]
    count: int
    folds: Mapping[str, int]
    kind: str


@torch.inference_mode(False)
def trace_units(model: nn.Module, data: Any = None) -> list[UnitSpan]:
    """Return the matrices of every attention and feed-forward network that runs.

    Args:
        model: Any model; it is only read.
        data: Batches, keyword arguments of the model; without them, inputs are made up from the config.

    Raises:
        ValueError: The model does not run on the made-up inputs.
    """
    calls: list[_Call] = []
    copies: dict[nn.Module, nn.Module] = {}
    with torch.random.fork_rng(devices=[]), torch.enable_grad():
        torch.manual_seed(0)
        copy = skeleton(model, copies)
        for name, linear in linear_layers(model):
            _record(name, linear, copies[model.get_submodule(name)], calls)
        try:
            copy(**example_inputs(model, data))
        except Exception as error:  # an unknown model may fail in any way
            reason = str(error).partition("\n")[0]
            raise ValueError(
                f"cannot locate heads and neurons of {type(model).__name__}, which does not run on made-up "
                f"inputs ({type(error).__name__}: {reason}): pass data=[batch], or use granularity element, "
                "block, row or column"
            ) from None
        return list(_spans(calls))


@dataclass(frozen=True, eq=False)
class _Call:
    """One call of a linear layer: its input and the leaf that it returned."""

    name: str
    x: Tensor
    leaf: Tensor


def _record(name: str, linear: Any, copy: nn.Module, calls: list[_Call]) -> None:
    def forward(x: Tensor) -> Tensor:
        dtype = x.dtype if x.is_floating_point() else torch.get_default_dtype()
        leaf = torch.randn(*x.shape[:-1], linear.out_features).to(x.device, dtype).requires_grad_()
        calls.append(_Call(name, x, leaf))
        return leaf * 1  # so that the model may change its output in place

    stand_in_(copy, forward)


def _spans(calls: Sequence[_Call]) -> Iterator[UnitSpan]:
    first: dict[str, int] = {}
    for i, call in enumerate(calls):
        if call.x.requires_grad:
            first.setdefault(call.name, i)
    sources = {name: _sources(calls, i) for name, i in first.items()}
    readers: dict[str, set[str]] = defaultdict(set)
    for name, each in sources.items():
        for source in each:
            readers[source].add(name)
    for name, i in first.items():
        if sources[name] and all(readers[source] == {name} for source in sources[name]):
            leaves = {
                source: [call.leaf for call in calls[:i] if call.name == source] for source in sources[name]
            }
            if span := _span(name, calls[i].x, leaves):
                yield span


def _sources(calls: Sequence[_Call], i: int) -> list[str]:
    """Return the names of the layers on whose outputs the input of call ``i`` depends directly.

    A walk through the graph tells, which costs less than a gradient.
    """
    names = {id(call.leaf): call.name for call in calls[:i]}
    nodes: list[Any] = [calls[i].x.grad_fn]
    seen, sources = set(nodes), set()
    while nodes:
        node = nodes.pop()
        if name := names.get(id(getattr(node, "variable", None))):
            sources.add(name)
        for following, _ in node.next_functions:
            if following is not None and following not in seen:
                seen.add(following)
                nodes.append(following)
    return [name for name in dict.fromkeys(names.values()) if name in sources]


def _span(name: str, x: Tensor, leaves: Mapping[str, Sequence[Tensor]]) -> UnitSpan | None:
    """Return the units that ``x``, the input of a matrix, shares with its sources; None without any."""
    columns = x.shape[-1]
    rows = {source: each[0].shape[-1] for source, each in leaves.items()}
    if any(not live.any() for live in _support(x, slice(None), leaves).values()):
        return None
    alone = _support(x, slice(0, 1), leaves)
    for count in (each for each in range(columns, 0, -1) if columns % each == 0):
        first = _support(x, slice(0, columns // count), leaves)
        folds = {source: _fold(first[source], rows[source], count) for source in leaves}
        if not all(folds.values()):
            continue
        if count == 1 and not any(int(each.sum()) == 1 for each in alone.values()):
            return None  # every feature depends on all: a norm or a residual stream
        if all(_separate(x, leaves, folds, count, bit, value) for bit, value in _halves(count)):
            kind = _kind(count, columns, sum(rows.values()))
            return UnitSpan((*leaves, name), count, folds, kind) if kind else None
    return None


def _kind(count: int, columns: int, rows: int) -> str:
    """Return the kind of units of a matrix and the sources of its input, or "".

    A neuron has one row, or two with a gate. Query, key and value together have more rows than the output
    projection has columns, and three times as many if heads are one feature wide.
    """
    if count == columns and rows <= 2 * columns:
        return "neuron"
    return "head" if rows > columns else ""


def _fold(live: Tensor, rows: int, count: int) -> int:
    """Return the number of slices with which ``live``, the rows of unit 0, agree; 0 if with none."""
    for fold in _FOLDS:
        if rows % (fold * count) == 0 and not live[_unit_of(rows, fold, count) != 0].any():
            return fold
    return 0


def _separate(
    x: Tensor,
    leaves: Mapping[str, Sequence[Tensor]],
    folds: Mapping[str, int],
    count: int,
    bit: int,
    value: int,
) -> bool:
    """Whether the units with this bit in their number depend on no rows of the other units."""
    columns = _unit_of(x.shape[-1], 1, count)
    live = _support(x, (columns >> bit & 1) == value, leaves)
    return not any(
        rows[(_unit_of(len(rows), folds[source], count) >> bit & 1) != value].any()
        for source, rows in live.items()
    )


def _halves(count: int) -> Iterator[tuple[int, int]]:
    for bit in range((count - 1).bit_length()):
        yield bit, 0
        yield bit, 1


def _unit_of(features: int, fold: int, count: int) -> Tensor:
    """Return the unit of every feature."""
    size = features // fold
    return torch.arange(features) % size // (size // count)


def _support(x: Tensor, columns: Any, leaves: Mapping[str, Sequence[Tensor]]) -> dict[str, Tensor]:
    """Return name -> bool [features], True where these columns of ``x`` depend on the feature."""
    flat = [(source, leaf) for source, each in leaves.items() for leaf in each]
    gradients = _gradients(x, columns, [leaf for _, leaf in flat])
    live = {source: torch.zeros(each[0].shape[-1], dtype=torch.bool) for source, each in leaves.items()}
    for (source, _), gradient in zip(flat, gradients, strict=True):
        if gradient is not None:
            live[source] |= (gradient.flatten(0, -2) != 0).any(0).cpu()
    return live


def _gradients(x: Tensor, columns: Any, leaves: Sequence[Tensor]) -> Sequence[Tensor | None]:
    if not leaves:
        return ()
    weights = x.new_zeros(x.shape[-1])
    weights[columns] = torch.randn_like(weights)[columns]
    return torch.autograd.grad(x, list(leaves), weights.expand_as(x), retain_graph=True, allow_unused=True)


def example_inputs(model: nn.Module, data: Any = None) -> dict[str, Any]:
    """Return keyword arguments to run the model with: the first batch, or made-up inputs."""
    # An iterator would lose its first batch.
    first = None if data is None or isinstance(data, Iterator) else next(iter(data), None)
    if first is not None:
        batch = {name: value for name, value in first.items() if name != "labels"}
    else:
        batch = dict(_made_up(model))
    device = next((each.device for each in model.parameters()), torch.device("cpu"))
    return {name: value.to(device) if isinstance(value, Tensor) else value for name, value in batch.items()}


def _made_up(model: nn.Module) -> Iterator[tuple[str, Any]]:
    config: Any = getattr(model, "config", None)
    if config is None:
        raise ValueError("it has no config to make inputs from")
    names: Iterable[str] = _arguments(model)
    text, vision = (getattr(config, name, None) or config for name in ("text_config", "vision_config"))
    for name in names:
        if name in ("input_ids", "decoder_input_ids"):
            # Small ids that no tokenizer uses for padding, so that all tokens are attended to.
            ids = torch.arange(_EXAMPLES * _TOKENS).view(_EXAMPLES, _TOKENS) + 3
            yield name, ids % max(getattr(text, "vocab_size", 8), 4)
        elif name == "input_values" and not hasattr(config, "num_mel_bins"):
            yield name, torch.randn(1, _SAMPLES)
        elif name == "use_cache":
            yield name, False
        elif name == "pixel_values":
            yield name, torch.randn(1, getattr(vision, "num_channels", 3), *_image_size(vision))


def _arguments(model: nn.Module) -> tuple[str, ...]:
    unwrapped: Any = model
    while hasattr(unwrapped, "_orig_mod"):  # torch.compile's wrapper
        unwrapped = unwrapped._orig_mod
    return tuple(inspect.signature(type(unwrapped).forward).parameters)


def _image_size(config: Any) -> tuple[int, int]:
    size = getattr(config, "image_size", 224)
    height, width = size if isinstance(size, (tuple, list)) else (size, size)
    return int(height), int(width)
