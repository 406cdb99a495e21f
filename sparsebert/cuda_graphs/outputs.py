"""The outputs of a model: which of their dimensions count sequences or tokens, and the real part of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_unflatten

from sparsebert.cuda_graphs.buckets import Shape
from sparsebert.cuda_graphs.calls import NoGraph

# Two shapes whose four numbers differ.
PROBES: tuple[Shape, Shape] = ((1, 3), (2, 4))
_SEQUENCES, _TOKENS, _FIXED = 0, 1, 2

# Errors of graphs against the model, relative to the largest output or 1. They tell another computation from
# rounding, which differs between shapes as kernels do.
_TOLERANCES = {torch.float64: 1e-6, torch.float32: 1e-2}
_TOLERANCE_16_BIT = 0.1


@dataclass(frozen=True)
class OutputDimensions:
    """What each dimension of each output counts.

    Attributes:
        of_leaves: For each output tensor, in the order of its tree, one number for each dimension; None for
            outputs that are not tensors.
    """

    of_leaves: tuple[tuple[int, ...] | None, ...]

    @classmethod
    def probe(cls, run: Callable[[Shape], Any]) -> OutputDimensions:
        """Derive the dimensions from the outputs for two small batches.

        Args:
            run: Runs the model on padding of the given shape.

        Raises:
            NoGraph: A dimension is neither constant nor the number of sequences or tokens.
        """
        leaves = [_leaves(run(shape)) for shape in PROBES]
        if len(leaves[0]) != len(leaves[1]):
            raise NoGraph("outputs", "the number of its outputs depends on the batch")
        return cls(tuple(map(_dimensions, *leaves)))

    def real_part(self, outputs: Any, shape: Shape) -> Any:
        """Return copies of the outputs without padding, in the same structure.

        Args:
            outputs: Outputs of a bucket.
            shape: Sequences and tokens of the batch.
        """
        leaves, tree = tree_flatten(outputs)
        copies: dict[int, Any] = {}
        for leaf, dimensions in zip(leaves, self.of_leaves, strict=True):
            if id(leaf) not in copies:
                copies[id(leaf)] = leaf if dimensions is None else _cut(leaf, dimensions, shape).clone()
        return tree_unflatten([copies[id(leaf)] for leaf in leaves], tree)


def largest_error(outputs: Any, exact: Any) -> tuple[float, float]:
    """Return the largest error of any output, relative to the largest value or 1, and its limit."""
    errors, limit = [0.0], 0.0
    for mine, true in zip(_leaves(outputs), _leaves(exact), strict=True):
        if isinstance(true, Tensor) and true.is_floating_point():
            difference = torch.where(mine == true, 0.0, (mine.double() - true.double()).abs())
            difference = difference.masked_fill(mine.isnan() & true.isnan(), 0.0)
            largest = true.double().abs().nan_to_num(0.0, 0.0, 0.0).max().clamp(min=1.0)
            errors.append((difference.max() / largest).nan_to_num(torch.inf).item())
            limit = max(limit, _TOLERANCES.get(true.dtype, _TOLERANCE_16_BIT))
    return max(errors), limit


def _leaves(outputs: Any) -> Sequence[Any]:
    leaves: Sequence[Any] = tree_flatten(outputs)[0]
    return leaves


def _dimensions(first: Any, second: Any) -> tuple[int, ...] | None:
    if not isinstance(first, Tensor):
        if first is None or isinstance(first, (bool, int, float, str)):
            return None
        raise NoGraph("outputs", f"it returns a {type(first).__name__}, which cannot be cut to the batch")
    if first.dim() != second.dim():
        raise NoGraph("outputs", "the dimensions of its outputs depend on the batch")
    return tuple(map(_dimension, first.shape, second.shape))


def _dimension(first: int, second: int) -> int:
    if first == second:
        return _FIXED
    for counted in (_SEQUENCES, _TOKENS):
        if (first, second) == (PROBES[0][counted], PROBES[1][counted]):
            return counted
    raise NoGraph("outputs", "an output has a dimension that is neither sequences nor tokens")


def _cut(tensor: Tensor, dimensions: Sequence[int], shape: Shape) -> Tensor:
    for number, counted in enumerate(dimensions):
        if counted != _FIXED:
            tensor = tensor.narrow(number, 0, shape[counted])
    return tensor
