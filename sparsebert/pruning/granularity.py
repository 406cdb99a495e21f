"""Granularity: the units of a matrix, weights that are pruned together."""

from __future__ import annotations

import re
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from sparsebert_kernels.errors import unknown

_NAMES = ("element", "block", "panel", "row", "column", "neuron", "head", "mlp", "n:m")
ACROSS_MATRICES = ("neuron", "head", "mlp")
PANEL = "panel"
# The granularities that need a block size, and what their error says.
_SIZED = {
    "block": "needs block_size=(out, in), such as (4, 1); '4x1' is short for that",
    PANEL: "needs block_size=(out, in), such as (32, 2); 'panel(32,2)' is short for that",
}
_BLOCKS = re.compile(r"(\d+)x(\d+)")
_PANELS = re.compile(r"panel\((\d+), ?(\d+)\)")
# Longer than any row or column of a BERT, and short enough for torch's integers.
_MAX_BLOCK_LENGTH = 2**20
_COMMAS = re.compile(r",(?![^(]*\))")
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
        quantum: Each row of units keeps a multiple of this number of units, or all; see
            :mod:`sparsebert.pruning.panel_rounding`.
    """

    name: str
    block: tuple[int | None, int | None]
    pattern: tuple[int, int] | None = None
    fold: int = 1
    quantum: int = 1

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
    """Return the name and block size of a granularity.

    "4x1" is spelled out as "block" and (4, 1), "panel(32,2)" as "panel" and (32, 2).
    """
    if block_size is None and isinstance(granularity, str):
        for name, expression in (("block", _BLOCKS), (PANEL, _PANELS)):
            if match := expression.fullmatch(granularity):
                return name, (int(match[1]), int(match[2]))
    return granularity, block_size


def parse_granularity(
    name: str, block_size: tuple[int, int] | None = None, round_to: int | None = None
) -> Granularity:
    """Return the granularity of that name.

    Args:
        name: "element", "block", "panel", "row", "column", "neuron", "head", "mlp", two of the last three
            that share no weights ("head+neuron", "head+mlp"), or a pattern such as "2:4".
        block_size: (out, in), for "block" and "panel" only.
        round_to: For "panel" only: each panel keeps a multiple of this number of columns. None for
            :func:`default_round_to`.

    Raises:
        ValueError: The name is unknown (the nearest is offered), the block size is missing, superfluous or
            not two positive ints, ``round_to`` is superfluous or not a multiple of the block's columns, the
            pattern keeps everything, or the joined units share weights.
    """
    if round_to is not None and name != PANEL:
        raise ValueError(f"granularity {name!r} takes no round_to; only 'panel' does, got {round_to!r}")
    if (block_size is not None) != (name in _SIZED):
        needs = "takes no block_size; only 'block' and 'panel' do"
        if name in _SIZED:
            needs = _SIZED[name]
        raise ValueError(f"granularity {name!r} {needs}")
    if name == "block":
        return Granularity(name, _block_size(block_size))
    if name == PANEL:
        rows, columns = _block_size(block_size)
        return Granularity(name, (rows, columns), quantum=_quantum(columns, round_to))
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
        error = ValueError(
            f"{error}; write blocks of 4 rows and 1 column '4x1', panels of 32 rows and pairs of columns "
            "'panel(32,2)', and patterns '2:4'"
        )
    raise error


def kinds_in(name: str) -> tuple[str, ...]:
    """Return the kinds of units across matrices in a granularity, such as ("head", "mlp"), or ()."""
    parts = tuple(name.split("+"))
    return parts if set(parts) <= set(ACROSS_MATRICES) else ()


def listed(granularities: str) -> tuple[str, ...]:
    """Return the granularities of a list separated by commas, such as "element,panel(32,2)"."""
    return tuple(dict.fromkeys(name.strip() for name in _COMMAS.split(granularities)))


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


def default_round_to(columns: int) -> int:
    """Return the columns of which a panel keeps a multiple, for units of ``columns`` columns.

    32, as bf16 kernels read them, for groups of 1 or 2; 64, as int8 kernels read them, for wider groups.
    """
    return 32 if columns <= 2 else 64


def _quantum(columns: int, round_to: int | None) -> int:
    """Return the units of which a panel keeps a multiple."""
    default = "" if round_to is not None else ", the default; pass another"
    if round_to is None:
        round_to = default_round_to(columns)
    if not isinstance(round_to, int) or isinstance(round_to, bool) or round_to < 1 or round_to % columns:
        raise ValueError(
            f"round_to must be a positive multiple of the {columns} columns of a unit, such as "
            f"{columns * max(1, 32 // columns)}, got {round_to!r}{default}"
        )
    if round_to > _MAX_BLOCK_LENGTH:
        raise ValueError(f"round_to must be at most {_MAX_BLOCK_LENGTH} columns, got {round_to}")
    return round_to // columns


def _block_size(block_size: object) -> tuple[int, int]:
    if (
        not isinstance(block_size, (tuple, list))
        or len(block_size) != 2
        or not all(isinstance(size, int) and not isinstance(size, bool) and size >= 1 for size in block_size)
    ):
        raise ValueError(f"block_size must be two positive ints (out, in), got {block_size!r}")
    if max(block_size) > _MAX_BLOCK_LENGTH:
        raise ValueError(f"block_size must be at most {_MAX_BLOCK_LENGTH} (out, in), got {block_size!r}")
    return block_size[0], block_size[1]
