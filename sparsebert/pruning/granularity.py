"""Granularity: the units that are pruned together, and how the scores of their weights become one score."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from sparsebert_kernels.names import unknown

_NAMES = ("element", "block", "row", "column", "n:m")
_PATTERN = re.compile(r"([1-9]\d{0,3}):([1-9]\d{0,3})")


@dataclass(frozen=True)
class Granularity:
    """Units of ``block`` = (rows, columns) of a matrix [out, in]; None stands for the whole length.

    A block that does not divide the matrix leaves smaller units at its right and lower edge.
    ``pattern``: (n, m) if n of every m neighbours along in_features are kept; the units are elements then.
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

    def pool(self, scores: Tensor, rule: str) -> Tensor:
        """One float32 score per unit from the scores [out, in] of its weights, by a rule of POOLING."""
        rows, columns = self.block_in(scores.shape)
        if rows * columns == 1:
            return scores
        sizes = torch.as_tensor(self.sizes(scores.shape))
        return POOLING[rule](lambda x, fill: _tiles(x, rows, columns, fill), scores, sizes)

    def expand(self, units: Tensor, shape: torch.Size) -> Tensor:
        """The mask [out, in] of a mask over units."""
        rows, columns = self.block_in(shape)
        if rows * columns == 1:
            return units
        whole = units.repeat_interleave(rows, 0)[: shape[0]].repeat_interleave(columns, 1)
        return whole[:, : shape[1]].contiguous()


def parse_granularity(name: str, block_size: tuple[int, int] | None = None) -> Granularity:
    """The granularity of that name: element, block, row, column, or a pattern such as "2:4".

    ``block_size``: (out, in) of a block. Raises ValueError for an unknown name (nearest offered), a missing,
    superfluous or impossible block size, and a pattern that keeps everything.
    """
    if (block_size is not None) != (name == "block"):
        needs = "needs block_size=(out, in)" if name == "block" else "takes no block_size; only 'block' does"
        raise ValueError(f"granularity {name!r} {needs}")
    if name == "block":
        return Granularity(name, _block_size(block_size))
    if name == "element":
        return Granularity(name, (1, 1))
    if name == "row":
        return Granularity(name, (1, None))
    if name == "column":
        return Granularity(name, (None, 1))
    if isinstance(name, str) and (found := _PATTERN.fullmatch(name)):
        n, m = int(found[1]), int(found[2])
        if n >= m:
            raise ValueError(
                f"granularity {name!r} must keep fewer than all: n of m with n < m, such as '2:4'"
            )
        return Granularity(name, (1, 1), (n, m))
    if name == "n:m":
        raise ValueError("granularity 'n:m' wants its numbers, such as '2:4'")
    raise unknown("granularity", name, _NAMES)


def keep_n_of_m(keys: Tensor, n: int, m: int) -> Tensor:
    """The n highest of every m neighbours along the last dimension; of equal keys the first.

    ``keys``: int32 [out, in] with m dividing in. Returns bool [out, in].
    """
    columns = keys.view(-1, m).t().contiguous()
    better = torch.zeros(columns.shape, dtype=torch.int16)  # how many of its group rank before an entry
    for i in range(m):
        for j in range(i):
            before = columns[j] >= columns[i]
            better[i] += before
            better[j] += ~before
    return (better < n).t().contiguous().view(keys.shape)


def _block_size(block_size: object) -> tuple[int, int]:
    if (
        not isinstance(block_size, (tuple, list))
        or len(block_size) != 2
        or not all(isinstance(size, int) and not isinstance(size, bool) and size >= 1 for size in block_size)
    ):
        raise ValueError(f"block_size must be two positive ints (out, in), not {block_size!r}")
    return block_size[0], block_size[1]


def _tiles(scores: Tensor, rows: int, columns: int, fill: float) -> Tensor:
    """[out, in] cut into blocks: [unit rows, unit columns, rows * columns], the edges filled up."""
    height, width = scores.shape
    padded = F.pad(scores, (0, -width % columns, 0, -height % rows), value=fill)
    tiles = padded.view(padded.shape[0] // rows, rows, padded.shape[1] // columns, columns)
    return tiles.transpose(1, 2).flatten(2)


_Tiler = Callable[[Tensor, float], Tensor]


def _mean(tiles: _Tiler, scores: Tensor, sizes: Tensor) -> Tensor:
    return (tiles(scores, 0.0).sum(2, dtype=torch.float64) / sizes).float()


def _rms(tiles: _Tiler, scores: Tensor, sizes: Tensor) -> Tensor:
    return (tiles(scores, 0.0).double().square().sum(2) / sizes).sqrt().float()


def _max(tiles: _Tiler, scores: Tensor, sizes: Tensor) -> Tensor:
    return tiles(scores, float("-inf")).amax(2)


POOLING: dict[str, Callable[[_Tiler, Tensor, Tensor], Tensor]] = {"mean": _mean, "rms": _rms, "max": _max}
