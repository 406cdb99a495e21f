"""Pruning methods by name: a method is a frozen dataclass of its options with a ``scores`` function."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar, Protocol, TypeVar

from torch import Tensor

from sparsebert.bert import Structure
from sparsebert_kernels.errors import unknown


def _no_gradients(**options: bool) -> Mapping[str, Tensor]:
    raise ValueError("this method looks at examples: name their task, or pass data, an iterable of batches")


@dataclass(frozen=True)
class Subject:
    """What a method sees: never a model, only its matrices and how they belong together.

    ``weights``: key -> float32 [out, in] on the CPU, of the matrices to prune in model order, already pruned
    entries 0.
    ``units``: rows and columns of each grid of prunable units (the matrix shape itself for elements), by the
    key of its matrix; by the first one's where several matrices share neurons or heads.
    ``kinds``: what those units are, a granularity each, by the same keys.
    ``data``: batches, for methods that look at examples.
    ``gradients``: computes dL/dW of every matrix, float32 [out, in], summed over ``data``.
    ``importance``: computes the importance of heads, neurons and MLPs over ``data``, by the keys of
    ``units``: :func:`sparsebert.pruning.methods.head_importance.gate_importance` with the options it is given.
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
    """``scores`` returns float32 scores of every weight by key, or of every unit by the keys of
    :attr:`Subject.units`; the highest are kept."""

    name: ClassVar[str]

    def scores(self, subject: Subject) -> dict[str, Tensor]: ...


M = TypeVar("M", bound=type[Any])
_METHODS: dict[str, type[Any]] = {}


def register(name: str, registry: dict[str, type[Any]] = _METHODS) -> Callable[[M], M]:
    """Class decorator: give a method that name and make it known under it, here or in another registry."""

    def add(cls: M) -> M:
        cls.name = name
        registry[name] = cls
        return cls

    return add


def methods() -> tuple[str, ...]:
    """Names of the registered methods."""
    return tuple(_METHODS)


def find_method(name: str | Method, **options: Any) -> Method:
    """The method of that name with these options; an instance is returned as it is.

    Raises ValueError for an unknown name or option, offering the nearest.
    """
    if isinstance(name, str) and name in _METHODS:
        known = [each.name for each in fields(_METHODS[name])]
        if wrong := options.keys() - set(known):
            raise unknown(f"option of method {name}", min(wrong), known)
        return _METHODS[name](**options)
    if isinstance(name, str) or not hasattr(name, "scores"):
        raise unknown("pruning method", name, _METHODS)
    return name
