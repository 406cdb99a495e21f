"""Granularity: the units of a matrix, weights that are pruned together."""

from __future__ import annotations

import re
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from sparsebert_kernels.errors import unknown

_NAMES = ("element", "block", "row", "column", "neuron", "head", "mlp", "n:m")
ACROSS_MATRICES = ("neuron", "head", "mlp")
_BLOCKS = re.compile(r"(\d+)x(\d+)")
_PATTERN = re.compile(r"([1-9]\d{0,3}):([1-9]\d{0,3})")


@dataclass(frozen=True)
class Granularity:
    """Units of equal size in a matrix [out, in].

    If ``block`` does not divide the matrix, the units at its right and lower edge are smaller. Neurons, heads
    and whole MLPs have weights in several matrices: see :mod:`sparsebert.pruning.unit_groups`.

    Attributes:
        name: The granularity as the user writes it.
        block: (rows, columns) of a unit; None stands for the whole length.
        pattern: (n, m) if n of every m neighbours along in_features are kept; the units are elements then.
        fold: Number of equal slices of the rows, each with a part of every unit, as in a matrix that computes
            query, key and value together. A unit has ``block`` rows in each slice.
    """

    name: str
    block: tuple[int | None, int | None]
    pattern: tuple[int, int] | None = None
    fold: int = 1

    def block_in(self, shape: torch.Size) -> tuple[int, int]:
        """Return the rows and columns of one unit in a matrix of this shape, all slices together."""
        rows, columns = (
            whole if part is None else min(part, whole) for part, whole in zip(self.block, shape, strict=True)
        )
        return (rows if self.block[0] is None else rows * self.fold), columns

    def units(self, shape: torch.Size) -> tuple[int, int]:
        """Return the rows and columns of the grid of units."""
        rows, columns = self.block_in(shape)
        return -(-shape[0] // rows), -(-shape[1] // columns)

    def sizes(self, shape: torch.Size) -> Tensor | int:
        """Return the weights of each unit: one int if all are equal, else int64 [unit rows, unit columns]."""
        rows, columns = self.block_in(shape)
        if shape[0] % rows == 0 and shape[1] % columns == 0:
            return rows * columns
        heights = torch.full((self.units(shape)[0],), rows)
        widths = torch.full((self.units(shape)[1],), columns)
        heights[-1] = (shape[0] - 1) % rows + 1
        widths[-1] = (shape[1] - 1) % columns + 1
        return heights[:, None] * widths

    def tiles(self, scores: Tensor, fill: float) -> Tensor:
        """Cut scores [out, in] into [unit rows, unit columns, weights], padded with ``fill`` at an edge."""
        rows, columns = self.block_in(scores.shape)
        height, width = scores.shape
        if self.fold > 1:
            scores = scores[self._order(height)]
        padded = F.pad(scores, (0, -width % columns, 0, -height % rows), value=fill)
        cut = padded.view(padded.shape[0] // rows, rows, padded.shape[1] // columns, columns)
        return cut.transpose(1, 2).flatten(2)

    def expand(self, units: Tensor, shape: torch.Size) -> Tensor:
        """Return the mask [out, in] of a mask over units."""
        rows, columns = self.block_in(shape)
        if rows * columns == 1:
            return units
        whole = units.repeat_interleave(rows, 0)[: shape[0]].repeat_interleave(columns, 1)
        if self.fold > 1:
            whole = whole[self._order(shape[0]).argsort()]
        return whole[:, : shape[1]].contiguous()

    def _order(self, height: int) -> Tensor:
        """Return the rows in the order of their units."""
        rows = self.block[0] or height // self.fold
        return torch.arange(height).view(self.fold, -1, rows).transpose(0, 1).flatten()


def spelled_out(
    granularity: str, block_size: tuple[int, int] | None = None
) -> tuple[str, tuple[int, int] | None]:
    """Return the name and block size of a granularity, with "4x1" spelled out as "block" and (4, 1)."""
    if block_size is None and isinstance(granularity, str) and (match := _BLOCKS.fullmatch(granularity)):
        return "block", (int(match[1]), int(match[2]))
    return granularity, block_size


def parse_granularity(name: str, block_size: tuple[int, int] | None = None) -> Granularity:
    """Return the granularity of that name.

    Args:
        name: "element", "block", "row", "column", "neuron", "head", "mlp", two of the last three that share
            no weights ("head+neuron", "head+mlp"), or a pattern such as "2:4".
        block_size: (out, in), for "block" only.

    Raises:
        ValueError: The name is unknown (the nearest is offered), the block size is missing, superfluous or
            not two positive ints, the pattern keeps everything, or the joined units share weights.
    """
    if (block_size is not None) != (name == "block"):
        needs = "takes no block_size; only 'block' does"
        if name == "block":
            needs = "needs block_size=(out, in), such as (4, 1); '4x1' is short for that"
        raise ValueError(f"granularity {name!r} {needs}")
    if name == "block":
        return Granularity(name, _block_size(block_size))
    if name == "element":
        return Granularity(name, (1, 1))
    if name == "row":
        return Granularity(name, (1, None))
    if name == "column":
        return Granularity(name, (None, 1))
    if isinstance(name, str) and (parts := kinds_in(name)):
        if len(set(parts)) < len(parts) or {"neuron", "mlp"} <= set(parts):
            raise ValueError(
                f"granularity {name!r} covers some weights twice: use 'head+neuron' or 'head+mlp'"
            )
        return Granularity(name, (None, None))
    if isinstance(name, str) and (match := _PATTERN.fullmatch(name)):
        n, m = int(match[1]), int(match[2])
        if n >= m:
            raise ValueError(
                f"granularity {name!r} must keep fewer than all weights: n of m with n < m, such as '2:4'"
            )
        return Granularity(name, (1, 1), (n, m))
    if name == "n:m":
        raise ValueError("granularity 'n:m' is a placeholder: write the numbers, such as '2:4'")
    error = unknown("granularity", name, _NAMES)
    if any(map(str.isdigit, str(name))):
        error = ValueError(f"{error}; write blocks of 4 rows and 1 column '4x1' and patterns '2:4'")
    raise error


def kinds_in(name: str) -> tuple[str, ...]:
    """Return the kinds of units across matrices in a granularity, such as ("head", "mlp"), or ()."""
    parts = tuple(name.split("+"))
    return parts if set(parts) <= set(ACROSS_MATRICES) else ()


def keep_n_of_m(scores: Tensor, n: int, m: int) -> Tensor:
    """Keep the n highest scores of every m neighbours along the last dimension; of equals, keep the first.

    Args:
        scores: float32 [out, in], NaN for dead entries, which rank last; m divides in.
        n: Number to keep.
        m: Number of neighbours.

    Returns:
        bool [out, in], True = keep.
    """
    columns = scores.view(-1, m).t().contiguous()
    dead = columns.isnan()
    better = torch.zeros(columns.shape, dtype=torch.int16)  # number of neighbours that rank before an entry
    for i in range(m):
        for j in range(i):
            before = (columns[j] >= columns[i]) | dead[i]
            better[i] += before
            better[j] += ~before
    return (better < n).t().contiguous().view(scores.shape)


def _block_size(block_size: object) -> tuple[int, int]:
    if (
        not isinstance(block_size, (tuple, list))
        or len(block_size) != 2
        or not all(isinstance(size, int) and not isinstance(size, bool) and size >= 1 for size in block_size)
    ):
        raise ValueError(f"block_size must be two positive ints (out, in), got {block_size!r}")
    return block_size[0], block_size[1]
