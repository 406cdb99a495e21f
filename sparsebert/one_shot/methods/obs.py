"""Greedy optimal brain surgeon: prune the cheapest unit, compensate, and begin again."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from sparsebert.one_shot.layer_problem import LAYER_METHODS, LayerProblem, PrunedMatrix, Target
from sparsebert.one_shot.least_squares import solve_kept
from sparsebert.pruning.registry import register

# Multiply-adds and bytes that pruning a matrix may take: minutes, and a share of a small machine's memory.
_MOST_WORK = 1 << 36
_CHUNK = 1 << 29


@register("obs", LAYER_METHODS)
@dataclass(frozen=True)
class OptimalBrainSurgeon:
    """Frantar and Alistarh 2022, "Optimal Brain Compression", section 4 (ExactOBS). For small layers.

    The weight of a row with the least w_p^2 / [H^-1]_pp is pruned, the others of the row change by
    -w_p / [H^-1]_pp * H^-1[:, p], and row and column p are eliminated from H^-1; for a group g of weights the
    loss is w_g^T ([H^-1]_gg)^-1 w_g. A matrix loses the units of the rows whose next loss is least
    (algorithm 2 of the paper, for all rows at once), and those that stay are set by least squares. Rows of
    one unit share their losses: those of V x 1 units, their H^-1 too. For n:m, rows are pruned by
    themselves, groups of m neighbours that have lost m - n weights excepted.

    Attributes:
        damping: Share of the Hessian's mean diagonal that is added to its diagonal.
    """

    name: ClassVar[str]
    compensates: ClassVar[bool] = True
    damping: float = 0.0

    def prune_layer(self, problem: LayerProblem, target: Target) -> PrunedMatrix:
        """Prune greedily; see :class:`~sparsebert.one_shot.LayerMethod`.

        Raises ValueError if the matrix is too large.
        """
        factor = problem.inverse_factor(self.damping)
        mask = target.mask
        if mask is None:
            inverse = factor.t() @ factor
            mask = (
                _keep_n_of_m(problem, inverse, target) if target.pattern else _keep(problem, inverse, target)
            )
        return PrunedMatrix(solve_kept(problem.weight, problem.damped_hessian(self.damping), mask), mask)


def _keep(problem: LayerProblem, inverse: Tensor, target: Target) -> Tensor:
    """Return the mask of the units that are pruned last."""
    height, width = target.unit_shape
    bands, units = target.group.grid
    _require_small(problem, bands * units)
    weight = F.pad(problem.weight, (0, 0, 0, -len(problem.weight) % height))
    weight = weight.view(bands, height, -1)
    step = max(1, _CHUNK // (8 * len(inverse) ** 2))
    traces = [_trace(part, inverse, width, units) for part in weight.split(step)]
    order, losses = (torch.cat(parts) for parts in zip(*traces, strict=True))
    # Taking the band whose next loss is least: a band's loss counts at least as much as those before it.
    merged = losses.cummax(1).values.flatten().argsort(stable=True)
    turn = torch.empty_like(merged).scatter_(0, merged, torch.arange(1, len(merged) + 1)).view_as(order)
    turns = torch.empty_like(turn).scatter_(1, order, turn)
    return target.choose(target.group.expand(turns.double())[target.group.name])


def _trace(weight: Tensor, inverse: Tensor, width: int, units: int) -> tuple[Tensor, Tensor]:
    """Prune bands of rows to the last unit.

    Args:
        weight: float64 [bands, rows of a unit, in].
        inverse: H^-1, float64 [in, in].
        width: Columns of a unit; the last has fewer if it does not divide ``in``.
        units: Units of a band.

    Returns:
        The units in the order of their removal, int64 [bands, units], and the loss of each removal.
    """
    missing = units * width - len(inverse)
    padded = torch.block_diag(inverse, torch.eye(missing, dtype=inverse.dtype))
    inverses = padded.repeat(len(weight), 1, 1)
    weight = F.pad(weight, (0, missing))
    alive = torch.ones(len(weight), units, dtype=torch.bool)
    order, losses = [], []
    for _ in range(units):
        loss = _losses(weight, inverses, width).masked_fill(~alive, torch.inf)
        least, unit = loss.min(1)
        _eliminate(weight, inverses, unit, width)
        alive.scatter_(1, unit[:, None], False)
        order.append(unit)
        losses.append(least)
    return torch.stack(order, 1), torch.stack(losses, 1)


def _losses(weight: Tensor, inverses: Tensor, width: int) -> Tensor:
    """Return sum_r w_rg^T ([H^-1]_gg)^-1 w_rg of each unit g: float64 [bands, units]."""
    if width == 1:
        return weight.square().sum(1) / inverses.diagonal(dim1=1, dim2=2)
    bands, rows, columns = weight.shape
    tiles = inverses.view(bands, columns // width, width, columns // width, width)
    corners = tiles.diagonal(dim1=1, dim2=3).permute(0, 3, 1, 2)  # [bands, units, width, width]
    parts = weight.view(bands, rows, -1, width).permute(0, 2, 3, 1)  # [bands, units, width, rows]
    return (parts * torch.linalg.solve(corners, parts)).sum((2, 3))


def _eliminate(weight: Tensor, inverses: Tensor, unit: Tensor, width: int) -> None:
    """Prune a unit (int64 [bands]) of each band, compensate, and eliminate it from H^-1, in place."""
    _, rows, columns = weight.shape
    places = unit[:, None] * width + torch.arange(width)  # [bands, width]
    across = inverses.gather(1, places[:, :, None].expand(-1, -1, columns))  # H^-1[g, :]
    corner = across.gather(2, places[:, None].expand(-1, width, -1))
    solved = torch.linalg.solve(corner, across) if width > 1 else across / corner
    removed = weight.gather(2, places[:, None].expand(-1, rows, -1))
    weight -= removed @ solved
    inverses -= across.transpose(1, 2) @ solved
    # Exactly 0, with a diagonal of 1 for the systems to come.
    weight.scatter_(2, places[:, None].expand(-1, rows, -1), 0)
    inverses.scatter_(1, places[:, :, None].expand(-1, -1, columns), 0)
    inverses.scatter_(2, places[:, None].expand(-1, columns, -1), 0)
    inverses.diagonal(dim1=1, dim2=2).scatter_(1, places, 1)


def _keep_n_of_m(problem: LayerProblem, inverse: Tensor, target: Target) -> Tensor:
    """Return the mask of n of every m neighbours, row by row."""
    assert target.pattern is not None
    kept, among = target.pattern
    rows, columns = problem.weight.shape
    _require_small(problem, rows * columns)
    mask = torch.ones(rows, columns, dtype=torch.bool)
    step = max(1, _CHUNK // (8 * columns**2))
    for begin in range(0, rows, step):
        part = mask[begin : begin + step]
        weight = problem.weight[begin : begin + step, None].clone()
        inverses = inverse.repeat(len(part), 1, 1)
        for _ in range(columns // among * (among - kept)):
            free = (part.view(len(part), -1, among).sum(2) > kept).repeat_interleave(among, 1)
            unit = _losses(weight, inverses, 1).masked_fill(~(part & free), torch.inf).argmin(1)
            _eliminate(weight, inverses, unit, 1)
            part.scatter_(1, unit[:, None], False)
    return mask


def _require_small(problem: LayerProblem, units: int) -> None:
    rows, columns = problem.weight.shape
    work = units * columns**2
    if work > _MOST_WORK:
        raise ValueError(
            f"{problem.key} of {rows} x {columns} weights is too large for obs ({work:.1e} multiply-adds, at "
            f"most {_MOST_WORK:.1e}): use method alps or sparsegpt"
        )
