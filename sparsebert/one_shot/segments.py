"""Segments of a model: its layers one after the other, each with the calls that the batches lead to."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

from torch import Tensor, nn

from sparsebert.bert import full_name, resolve


class _Reached(Exception):
    """Ends a forward pass at the module whose input was wanted."""


@dataclass(frozen=True)
class Call:
    """The arguments of one call of a module."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    def with_states(self, states: Any) -> Call:
        """Return the same call with other hidden states, the first argument."""
        return Call((states, *self.args[1:]), self.kwargs)


@dataclass(frozen=True)
class Segment:
    """A part of a model that runs by itself.

    Attributes:
        module: The part: a layer, or the whole model where layers are not a chain.
        stages: Keys of the matrices in the order in which they run; those of a stage share one input.
        paths: Key -> path of the matrix below the module.
        calls: The call of each batch.
    """

    module: nn.Module
    stages: tuple[tuple[str, ...], ...]
    paths: Mapping[str, str]
    calls: tuple[Call, ...]

    def twin(self) -> Segment:
        """Return the same calls of a copy of the module."""
        return replace(self, module=copy.deepcopy(self.module))

    def matrix(self, key: str) -> nn.Module:
        """Return the module of a key."""
        return self.module.get_submodule(self.paths[key])

    def inputs(self, key: str) -> Iterator[Tensor]:
        """Yield the input of a matrix for each batch, without running what follows it."""
        matrix = self.matrix(key)
        for call in self.calls:
            yield _input_of(matrix, self.module, call)

    def outputs(self) -> Iterator[Tensor]:
        """Yield the hidden states that the module computes for each batch."""
        for call in self.calls:
            yield _states(self.module(*call.args, **call.kwargs))

    def following(self, segment: Segment) -> Segment:
        """Return ``segment`` with the outputs of this one as its inputs; this one's calls are spent."""
        calls = (call.with_states(states) for call, states in zip(segment.calls, self.outputs(), strict=True))
        return replace(segment, calls=tuple(calls))


def segments_of(model: nn.Module, keys: Sequence[str], batches: Sequence[Mapping[str, Any]]) -> list[Segment]:
    """Cut a model into the segments that hold these matrices.

    One pass over the batches notes the calls. The layers of the model's stack are segments if each passes its
    hidden states on to the next unchanged; otherwise the whole model is one segment. Only the first segment
    has its hidden states, the others get theirs from :meth:`Segment.following`.

    Raises ValueError if a matrix does not run, or runs several times in a pass, as in layers that are shared.
    """
    layers = _layers(model, keys)
    links: list[tuple[nn.Module, Any, Any]] = []
    calls: dict[nn.Module, list[Call]] = {layer: [] for layer in layers}
    chained = bool(layers)

    def note(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        links.append((layer, args[0] if args else None, _states(output)))
        keeps = args[:1] if layer is layers[0] else (None,)
        calls[layer].append(Call((*keeps, *args[1:]), kwargs))

    handles = [layer.register_forward_hook(note, with_kwargs=True) for layer in layers]
    order = None
    try:
        for batch in batches:
            links.clear()
            if order is None:
                order = _order(model, keys, batch)
            else:
                model(**batch)
            chained = chained and [layer for layer, _, _ in links] == layers
            chained = chained and all(
                states is following for (_, _, states), (_, following, _) in pairwise(links)
            )
            if not chained:
                break
    finally:
        for handle in handles:
            handle.remove()
    assert order is not None
    if not chained:
        return [_segment(model, model, order, [Call((), dict(batch)) for batch in batches])]
    return [_segment(model, layer, order, calls[layer]) for layer in layers]


def _order(model: nn.Module, keys: Sequence[str], batch: Mapping[str, Any]) -> list[tuple[str, Tensor]]:
    """Return keys in the order in which their matrices run on a batch, each with its input."""
    order: list[tuple[str, Tensor]] = []

    def look(key: str) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        return lambda _, args: order.append((key, args[0]))

    handles = [resolve(model, key).register_forward_pre_hook(look(key)) for key in keys]
    try:
        model(**batch)
    finally:
        for handle in handles:
            handle.remove()
    ran = [key for key, _ in order]
    if missing := set(keys) - set(ran):
        raise ValueError(f"{min(missing)} did not run on the calibration data: leave it out with a filter")
    if shared := {key for key in ran if ran.count(key) > 1}:
        raise ValueError(
            f"{min(shared)} runs several times in a pass, as shared layers do, and cannot be calibrated: "
            "use prune"
        )
    return order


def _segment(
    model: nn.Module, module: nn.Module, order: Sequence[tuple[str, Tensor]], calls: Sequence[Call]
) -> Segment:
    names = {id(inner): name for name, inner in module.named_modules()}
    paths: dict[str, str] = {}
    stages: list[list[str]] = []
    last: Tensor | None = None
    for key, states in order:
        if (path := names.get(id(resolve(model, key)))) is None:
            continue
        paths[key] = path
        if stages and states is last:
            stages[-1].append(key)
        else:
            stages.append([key])
        last = states
    return Segment(module, tuple(map(tuple, stages)), paths, tuple(calls))


def _layers(model: nn.Module, keys: Sequence[str]) -> list[nn.Module]:
    """Return the layers of the stack that holds all these matrices, or []."""
    names = [full_name(model, key) for key in keys]
    for name, module in model.named_modules():
        if isinstance(module, nn.ModuleList) and all(each.startswith(f"{name}.") for each in names):
            return list(module)
    return []


def _states(output: Any) -> Tensor:
    """Return the hidden states among the outputs of a layer."""
    return output if isinstance(output, Tensor) else output[0]


def _input_of(matrix: nn.Module, module: nn.Module, call: Call) -> Tensor:
    seen: list[Tensor] = []

    def look(_: nn.Module, args: tuple[Any, ...]) -> None:
        seen.append(args[0])
        raise _Reached

    handle = matrix.register_forward_pre_hook(look)
    try:
        module(*call.args, **call.kwargs)
    except _Reached:
        pass
    finally:
        handle.remove()
    return seen[0]
