"""Granularity: which weights of a matrix are pruned together, as a unit."""

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
    """Units of ``block`` = (rows, columns) of a matrix [out, in]; None stands for the whole length.

    A block that does not divide the matrix leaves smaller units at its right and lower edge.
    ``pattern``: (n, m) if n of every m neighbours along in_features are kept; the units are elements then.
    A neuron, head or whole MLP has weights in several matrices: see :mod:`sparsebert.pruning.unit_groups`.
    """

    name: str
    block: tuple[int | None, int | None]
    pattern: tuple[int, int] | None = None

    def block_in(self, shape: torch.Size) -> tuple[int, int]:
        """Rows and columns of one unit in a matrix of this shape."""
        rows, columns = (
            whole if part is None else min(part, whole) for part, whole in zip(self.block, shape, strict=True)
        )
        return rows, columns

    def units(self, shape: torch.Size) -> tuple[int, int]:
        """Rows and columns of the grid of units."""
        rows, columns = self.block_in(shape)
        return -(-shape[0] // rows), -(-shape[1] // columns)

    def sizes(self, shape: torch.Size) -> Tensor | int:
        """Weights in each unit: an int if all are alike, else int64 [unit rows, unit columns]."""
        rows, columns = self.block_in(shape)
        if shape[0] % rows == 0 and shape[1] % columns == 0:
            return rows * columns
        heights = torch.full((self.units(shape)[0],), rows)
        widths = torch.full((self.units(shape)[1],), columns)
        heights[-1] = (shape[0] - 1) % rows + 1
        widths[-1] = (shape[1] - 1) % columns + 1
        return heights[:, None] * widths

    def tiles(self, scores: Tensor, fill: float) -> Tensor:
        """[out, in] cut into units: [unit rows, unit columns, weights], those at an edge filled up."""
        rows, columns = self.block_in(scores.shape)
        height, width = scores.shape
        padded = F.pad(scores, (0, -width % columns, 0, -height % rows), value=fill)
        cut = padded.view(padded.shape[0] // rows, rows, padded.shape[1] // columns, columns)
        return cut.transpose(1, 2).flatten(2)

    def expand(self, units: Tensor, shape: torch.Size) -> Tensor:
        """The mask [out, in] of a mask over units."""
        rows, columns = self.block_in(shape)
        if rows * columns == 1:
            return units
        whole = units.repeat_interleave(rows, 0)[: shape[0]].repeat_interleave(columns, 1)
        return whole[:, : shape[1]].contiguous()


def spelled_out(
    granularity: str, block_size: tuple[int, int] | None = None
) -> tuple[str, tuple[int, int] | None]:
    """Name and block size of a granularity: "4x1" is "block" with (4, 1); all others are what they are."""
    if block_size is None and isinstance(granularity, str) and (found := _BLOCKS.fullmatch(granularity)):
        return "block", (int(found[1]), int(found[2]))
    return granularity, block_size


def parse_granularity(name: str, block_size: tuple[int, int] | None = None) -> Granularity:
    """The granularity of that name: element, block, row, column, neuron, head, mlp, two of these last three
    that share no weights ("head+neuron", "head+mlp"), or a pattern such as "2:4".

    ``block_size``: (out, in) of a block. Raises ValueError for an unknown name (nearest offered), a missing,
    superfluous or impossible block size, a pattern that keeps everything, and units that share weights.
    """
    if (block_size is not None) != (name == "block"):
        needs = "takes no block_size; only 'block' does"
        if name == "block":
            needs = "needs block_size=(out, in), such as (4, 1), or is written '4x1' for short"
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
            raise ValueError(f"granularity {name!r} names weights twice: use head+neuron or head+mlp")
        return Granularity(name, (None, None))
    if isinstance(name, str) and (found := _PATTERN.fullmatch(name)):
        n, m = int(found[1]), int(found[2])
        if n >= m:
            raise ValueError(
                f"granularity {name!r} must keep fewer than all: n of m with n < m, such as '2:4'"
            )
        return Granularity(name, (1, 1), (n, m))
    if name == "n:m":
        raise ValueError("granularity 'n:m' wants its numbers, such as '2:4'")
    error = unknown("granularity", name, _NAMES)
    if any(map(str.isdigit, str(name))):
        error = ValueError(f"{error}; blocks of 4 rows and 1 column are written '4x1', patterns '2:4'")
    raise error


def kinds_in(name: str) -> tuple[str, ...]:
    """The kinds of units across matrices that a granularity joins, such as ("head", "mlp"); () for others."""
    parts = tuple(name.split("+"))
    return parts if set(parts) <= set(ACROSS_MATRICES) else ()


def keep_n_of_m(scores: Tensor, n: int, m: int) -> Tensor:
    """The n highest of every m neighbours along the last dimension; of equal scores the first, dead last.

    ``scores``: float32 [out, in] with m dividing in, dead entries NaN. Returns bool [out, in].
    """
    columns = scores.view(-1, m).t().contiguous()
    dead = columns.isnan()
    better = torch.zeros(columns.shape, dtype=torch.int16)  # how many of its group rank before an entry
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
        raise ValueError(f"block_size must be two positive ints (out, in), not {block_size!r}")
    return block_size[0], block_size[1]
