"""Segments of a model: its layers one after the other, each with the calls that the batches lead to."""

from __future__ import annotations

import contextlib
import copy
import operator
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any, NamedTuple, TypeVar

from torch import Tensor, nn

from sparsebert.bert import full_name, resolve
from sparsebert.one_shot.replay import noting_inputs, noting_outputs, replaying

_Seen = TypeVar("_Seen")


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

    @property
    def states(self) -> Tensor:
        """The first tensor among the arguments: the hidden states, where the module is a layer."""
        values = (*self.args, *self.kwargs.values())
        return next(value for value in values if isinstance(value, Tensor))

    def shares_options(self, other: Call) -> bool:
        """Whether all arguments but the hidden states are those of another call."""
        ours, theirs = ((*call.args[1:], *call.kwargs.values()) for call in (self, other))
        names = list(self.kwargs) == list(other.kwargs)
        return names and len(ours) == len(theirs) and all(map(operator.is_, ours, theirs))


class Pass(NamedTuple):
    """What the pass of one batch through a segment showed.

    Attributes:
        states: The hidden states that it computes.
        inputs: Inputs of matrices, by key.
        outputs: Outputs of matrices, by key.
    """

    states: Tensor
    inputs: dict[str, Tensor]
    outputs: dict[str, Tensor]


@dataclass(frozen=True)
class Segment:
    """A part of a model that runs by itself.

    Attributes:
        module: The part: a layer, or the whole model where layers are not a chain.
        stages: Keys of the matrices in the order in which they run; those of a stage share one input.
        paths: Key -> path of the matrix below the module.
        calls: The call of each batch.
        is_layer: Whether the part is a layer.
        final: Keys of matrices that stay as they are, as do those before them: the next pass that computes
            their outputs notes them, and the passes after it read them.
        noted: These outputs, by key, of each call.
    """

    module: nn.Module
    stages: tuple[tuple[str, ...], ...]
    paths: Mapping[str, str]
    calls: tuple[Call, ...]
    is_layer: bool = True
    final: frozenset[str] = frozenset()
    noted: tuple[dict[str, Tensor], ...] = field(default=(), repr=False)

    def twin(self) -> Segment:
        """Return the same calls of a copy of the module."""
        return replace(self, module=copy.deepcopy(self.module))

    def matrix(self, key: str) -> nn.Module:
        """Return the module of a key."""
        return self.module.get_submodule(self.paths[key])

    def is_narrow(self, key: str) -> bool:
        """Whether a matrix has no more outputs than inputs."""
        weight: Any = self.matrix(key).weight
        return bool(weight.shape[0] <= weight.shape[1])

    def output_bytes(self, key: str) -> int:
        """Return the bytes of the outputs of a matrix for all calls of a layer."""
        weight: Any = self.matrix(key).weight
        tokens = sum(call.states.shape[:-1].numel() for call in self.calls)
        return int(tokens * weight.shape[0] * weight.itemsize)

    def inputs(self, key: str) -> Iterator[Tensor]:
        """Yield the input of a matrix for each batch, without running what follows it."""
        matrix = self.matrix(key)
        yield from self._run(lambda call: _input_of(matrix, self.module, call))

    def outputs(self) -> Iterator[Tensor]:
        """Yield the hidden states that the module computes for each batch."""
        yield from self._run(lambda call: _states(self.module(*call.args, **call.kwargs)))

    def passes(self, inputs: Iterable[str] = (), outputs: Iterable[str] = ()) -> Iterator[Pass]:
        """Yield the pass of each batch, with inputs and outputs of matrices."""
        read, returned = self._matrices(inputs), self._matrices(outputs)

        def run(call: Call) -> Pass:
            seen: tuple[dict[str, Tensor], dict[str, Tensor]] = {}, {}
            with noting_inputs(read, seen[0], call.states), noting_outputs(returned, seen[1]):
                return Pass(_states(self.module(*call.args, **call.kwargs)), *seen)

        yield from self._run(run)

    def following(self, segment: Segment) -> Segment:
        """Return ``segment`` with the outputs of this one as its inputs; this one's calls are spent."""
        return segment.with_states(self.outputs())

    def with_states(self, states: Iterable[Tensor]) -> Segment:
        """Return the segment with other hidden states, those of each batch, as its inputs."""
        calls = (call.with_states(each) for call, each in zip(self.calls, states, strict=True))
        return replace(self, calls=tuple(calls))

    def with_final(self, keys: Iterable[str]) -> Segment:
        """Return the segment with further matrices that stay as they are; it shares what is noted."""
        noted = self.noted or tuple({} for _ in self.calls)
        return replace(self, final=self.final.union(keys), noted=noted)

    def _run(self, run: Callable[[Call], _Seen]) -> Iterator[_Seen]:
        """Yield the result of a function for each call, with noted outputs read instead of computed."""
        if not self.final:
            yield from map(run, self.calls)
            return
        for call, noted in zip(self.calls, self.noted, strict=True):
            ready = self._matrices(self.final & noted.keys())
            missing = self._matrices(self.final - noted.keys())
            with replaying(ready, noted), noting_outputs(missing, noted):
                seen = run(call)
            yield seen

    def _matrices(self, keys: Iterable[str]) -> dict[str, nn.Module]:
        return {key: self.matrix(key) for key in keys}


def segments_of(model: nn.Module, keys: Sequence[str], batches: Sequence[Mapping[str, Any]]) -> list[Segment]:
    """Cut a model into the segments that hold these matrices.

    A pass notes the calls. The layers of the model's stack are segments if each passes its hidden states on
    to the next unchanged; otherwise the whole model is one segment. Only the first segment has its hidden
    states, the others get theirs from :meth:`Segment.following`. Where all layers share the other arguments
    of the first batch and of the last, as in BERT, the batches between them stop at the first layer.

    Raises ValueError if a matrix does not run, or runs several times in a pass, as in layers that are shared.
    """
    layers = _layers(model, keys)
    order: list[tuple[str, Tensor]] = []
    calls: dict[int, list[Call]] = {}  # index of a batch -> the call of each layer
    last = len(batches) - 1
    chained, shared = bool(layers), True
    for index in dict.fromkeys((0, last, *range(last))):
        batch = batches[index]
        if chained and shared and index not in (0, last):
            call = _call_of(layers[0], model, Call((), dict(batch)))
            calls[index] = [call, *[call.with_states(None)] * (len(layers) - 1)]
            continue
        with _links(layers) as links:
            if index == 0:
                order = _order(model, keys, batch)
            else:
                model(**batch)
        chained = chained and [link.layer for link in links] == layers
        chained = chained and all(one.states is two.entering for one, two in pairwise(links))
        if not chained:
            return [_segment(model, model, order, [Call((), dict(batch)) for batch in batches])]
        shared = shared and all(link.call.shares_options(links[0].call) for link in links)
        calls[index] = [links[0].call, *(link.call.with_states(None) for link in links[1:])]
    by_layer = zip(*(calls[index] for index in range(len(batches))), strict=True)
    return [_segment(model, layer, order, each) for layer, each in zip(layers, by_layer, strict=True)]


class _Link(NamedTuple):
    """A layer that ran, its call and the hidden states that it computed."""

    layer: nn.Module
    call: Call
    states: Tensor

    @property
    def entering(self) -> Any:
        """The first positional argument; None without one."""
        return self.call.args[0] if self.call.args else None


@contextlib.contextmanager
def _links(layers: Sequence[nn.Module]) -> Iterator[list[_Link]]:
    """Note the layers that run inside the ``with`` block, in order."""
    links: list[_Link] = []

    def note(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        links.append(_Link(layer, Call(args, kwargs), _states(output)))

    handles = [layer.register_forward_hook(note, with_kwargs=True) for layer in layers]
    try:
        yield links
    finally:
        for handle in handles:
            handle.remove()


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
    return Segment(module, tuple(map(tuple, stages)), paths, tuple(calls), is_layer=module is not model)


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
    states: Tensor = _call_of(matrix, module, call).args[0]
    return states


def _call_of(inner: nn.Module, module: nn.Module, call: Call) -> Call:
    """Return the call of an inner module in that of a module, which ends there."""
    seen: list[Call] = []

    def look(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        seen.append(Call(args, kwargs))
        raise _Reached

    handle = inner.register_forward_pre_hook(look, with_kwargs=True)
    try:
        module(*call.args, **call.kwargs)
    except _Reached:
        pass
    finally:
        handle.remove()
    return seen[0]
