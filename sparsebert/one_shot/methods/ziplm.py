"""ZipLM: remove whole columns, and let those that stay make up for the loss."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch

from sparsebert.one_shot.column_removal import RemainingColumns, remove_units
from sparsebert.one_shot.layer_problem import LAYER_METHODS, LayerProblem, PrunedMatrix, Target
from sparsebert.pruning.registry import register


@register("ziplm", LAYER_METHODS)
@dataclass(frozen=True)
class ZipLM:
    """Kurtic, Frantar and Alistarh 2023, "ZipLM: Inference-Aware Structured Pruning of Language Models".

    Algorithm 1: the unit S of columns with the least sum over rows of W_S ([H^-1]_SS)^-1 W_S^T is removed,
    the other columns take over W_S ([H^-1]_SS)^-1 [H^-1]_S:, and S leaves the inverse Hessian, until as many
    units remain as the density allows. A unit is a column of the down-projection, for neurons, or the columns
    of a head in the attention's output projection. The rows of the matrices that feed removed columns have no
    readers left and are pruned with them.

    Attributes:
        damping: Share of the Hessian's mean diagonal that is added to its diagonal.
        steps: Number of steps in which all units of a matrix would be removed. A step removes
            ceil(units / steps) units together; with at least as many steps as units it removes one, as
            published.

    Raises:
        ValueError: ``steps`` is not a positive int.
    """

    name: ClassVar[str]
    compensates: ClassVar[bool] = True
    damping: float = 0.01
    steps: int = 256

    def __post_init__(self) -> None:
        if not isinstance(self.steps, int) or isinstance(self.steps, bool) or self.steps < 1:
            raise ValueError(f"steps must be a positive int, got {self.steps!r}")

    def prune_layer(self, problem: LayerProblem, target: Target) -> PrunedMatrix:
        """Remove columns of the matrix; see :class:`~sparsebert.one_shot.LayerMethod`.

        Raises ValueError unless units are whole columns.
        """
        remaining = RemainingColumns.all_of(problem, _unit_width(problem, target), self.damping)
        units = len(remaining.units)
        if target.mask is None:
            (remaining,) = remove_units(remaining, [round(target.density * units)], self._at_once(units))
        else:
            dead = ~target.mask.any(0).unflatten(0, (units, -1)).any(1)
            remaining = remaining.without(dead.nonzero().flatten())
        weight = torch.zeros_like(problem.weight)
        weight[:, remaining.columns] = remaining.weight.flatten(1)
        mask = torch.zeros_like(weight, dtype=torch.bool)
        mask[:, remaining.columns] = True
        return PrunedMatrix(weight, mask)

    def losses(self, problem: LayerProblem, target: Target, counts: Sequence[int]) -> list[float]:
        """Return what the matrix loses at several numbers of units, from one sweep.

        Args:
            problem: The matrix and its inputs.
            target: The matrix cut into units, at any density.
            counts: Numbers of units to keep, descending.

        Returns:
            The share of the outputs' energy that is lost at each number, as ``LayerProblem.error`` defines it
            but for the damping of the Hessian.

        Raises:
            ValueError: Units are not whole columns.
        """
        remaining = RemainingColumns.all_of(problem, _unit_width(problem, target), self.damping)
        energy = float((problem.weight @ problem.damped_hessian(self.damping) * problem.weight).sum())
        steps = remove_units(remaining, counts, self._at_once(len(remaining.units)))
        return [step.loss / energy if energy > 0 else 0.0 for step in steps]

    def _at_once(self, units: int) -> int:
        return -(-units // self.steps)


def _unit_width(problem: LayerProblem, target: Target) -> int:
    """Return the columns of a unit; raise ValueError unless units are whole columns."""
    units = target.group.parts[problem.key]
    rows, columns = units.block
    if target.pattern or rows is not None or columns is None:
        raise ValueError(
            f"ziplm removes whole columns: use granularity neuron, head, head+neuron or column, "
            f"not {units.name!r}"
        )
    return columns
