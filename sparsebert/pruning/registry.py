"""Registry of the pruning methods: frozen dataclasses with the options and a ``scores`` method."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar, Protocol, TypeVar

from torch import Tensor

from sparsebert.bert import Structure
from sparsebert_kernels.errors import unknown


def _no_gradients(**options: bool) -> Mapping[str, Tensor]:
    raise ValueError("this method needs examples: name a task, or pass data, an iterable of batches")


@dataclass(frozen=True)
class ScoringContext:
    """The input of a pruning method: the matrices to prune and their units, but not the model.

    Attributes:
        weights: key -> float32 [out, in] on the CPU, in model order; pruned entries are 0.
        units: Rows and columns of each grid of prunable units (for elements, the shape of the matrix), by the
            key of the units' matrix; for neurons, heads and MLPs, of their first matrix.
        structure: Structure of the model.
        seed: Seed of the random numbers.
        kinds: The granularity of each grid, by the keys of ``units``.
        data: Batches, for methods that need examples.
        gradients: Computes dL/dW of every matrix, float32 [out, in], summed over ``data``.
        importance: Computes the importance of heads, neurons and MLPs over ``data``, by the keys of
            ``units``: :func:`sparsebert.pruning.methods.head_importance.gate_importance` with keyword
            options.
    """

    weights: Mapping[str, Tensor]
    units: Mapping[str, tuple[int, int]]
    structure: Structure
    seed: int
    kinds: Mapping[str, str] = field(default_factory=dict)
    data: Any = None
    gradients: Callable[[], Mapping[str, Tensor]] = _no_gradients
    importance: Callable[..., Mapping[str, Tensor]] = _no_gradients


class Method(Protocol):
    """A pruning method.

    ``scores`` returns float32 scores, either of every weight, by key, or of every unit, by the keys of
    :attr:`ScoringContext.units`. The weights or units with the highest scores are kept.
    """

    name: ClassVar[str]

    def scores(self, context: ScoringContext) -> dict[str, Tensor]: ...


M = TypeVar("M", bound=type[Any])
_METHODS: dict[str, type[Any]] = {}


def register(name: str, registry: dict[str, type[Any]] = _METHODS) -> Callable[[M], M]:
    """Class decorator: set a method's name and register it under that name, here or in another registry."""

    def add(cls: M) -> M:
        cls.name = name
        registry[name] = cls
        return cls

    return add


def methods() -> tuple[str, ...]:
    """Return the names of the registered methods."""
    return tuple(_METHODS)


def find_method(name: str | Method, **options: Any) -> Method:
    """Return the method of that name with these options; a method object is returned unchanged.

    Raises ValueError for an unknown name or option; the message offers the nearest.
    """
    if isinstance(name, str) and name in _METHODS:
        names = [option.name for option in fields(_METHODS[name])]
        if wrong := options.keys() - set(names):
            raise unknown(f"option of method {name}", min(wrong), names)
        return _METHODS[name](**options)
    if isinstance(name, str) or not hasattr(name, "scores"):
        raise unknown("pruning method", name, _METHODS)
    return name
