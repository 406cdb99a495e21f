"""Densities and granularities of matrices within a budget of milliseconds."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from typing import Any

import torch
from torch import Tensor, nn

from sparsebert.one_shot.allocation import MEASURED, Change, errors_at, measured_alone
from sparsebert.one_shot.budgets import STEPS, Option, choose
from sparsebert.one_shot.error_curves import ErrorCurve
from sparsebert.one_shot.layer_problem import LayerProblem, Target
from sparsebert.one_shot.progress import ProgressReporter
from sparsebert.one_shot.progress_file import ProgressFile

# Densities that a pruned matrix may get, this many from the lowest to just below 1.
GRID, LOWEST = 40, 0.01
DENSITIES = tuple(LOWEST ** (1 - index / GRID) for index in range(GRID))
# The densities at which errors are measured are not above this one, and not below that of the grid.
HIGHEST_MEASURED = 0.75

# Milliseconds of a matrix with a mask, bool [out, in], and an activation, by the way in which the model runs.
CostOf = Callable[[Tensor, str], Mapping[str, float]]


@dataclass(frozen=True)
class MatrixOption:
    """One way to prune a matrix.

    Attributes:
        granularity: Its granularity.
        density: Share of weights to keep; 1 for the dense matrix.
        error: Relative squared change of the model's last hidden states if this matrix alone is pruned.
        milliseconds: Its time, by the way in which the model runs.
    """

    granularity: str
    density: float
    error: float
    milliseconds: Mapping[str, float]

    def slower(self, slowdowns: Mapping[str, float]) -> MatrixOption:
        """Return the option with other times of its pruned form: multiplied by a number for each way."""
        if self.density == 1:
            return self
        times = {way: slowdowns[way] * each for way, each in self.milliseconds.items() if way in slowdowns}
        return replace(self, milliseconds=times)


@dataclass(frozen=True)
class Allocation:
    """The options that cost the model least within a budget.

    Attributes:
        way: The way in which the model runs.
        options: The option of each matrix.
        milliseconds: Their sum in that way.
        error: The sum of their errors.
    """

    way: str
    options: Mapping[str, MatrixOption]
    milliseconds: float
    error: float


def random_mask(target: Target) -> Tensor:
    """Return a random mask, bool [out, in], of the granularity and density of a target."""
    shape = target.group.shapes[target.group.name]
    return target.choose(torch.rand(shape, generator=torch.Generator().manual_seed(0)))


def at_density(target: Target, density: float) -> Target:
    """Return the target at another density."""
    return replace(target, density=Fraction(density).limit_denominator(10**6))


@dataclass
class TimeTable:
    """The milliseconds of matrices at each density of the grid; matrices alike share them.

    Attributes:
        targets: Granularity -> key -> target.
        cost_of: Milliseconds of a mask and an activation.
        activations: What kernels compute of the output of a matrix, by key.
    """

    targets: Mapping[str, Mapping[str, Target]]
    cost_of: CostOf
    activations: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._seen: dict[tuple[Any, ...], Mapping[str, float]] = {}

    def milliseconds(self, granularity: str, key: str, density: float) -> Mapping[str, float]:
        """Return the milliseconds of a matrix at a density, by way."""
        target = self.targets[granularity][key]
        shape = target.group.shapes[key]
        activation = self.activations.get(key, "none")
        entry = (granularity if density < 1 else "", tuple(shape), density, activation)
        if entry not in self._seen:
            whole = torch.ones(shape, dtype=torch.bool)
            mask = random_mask(at_density(target, density)) if density < 1 else whole
            self._seen[entry] = self.cost_of(mask, activation)
        return self._seen[entry]

    def uniform(self, granularity: str, density: float) -> dict[str, float]:
        """Return the milliseconds of all matrices at one density, by way."""
        total: dict[str, float] = defaultdict(float)
        for key in self.targets[granularity]:
            for way, each in self.milliseconds(granularity, key, density).items():
                total[way] += each
        return dict(total)

    def uniform_density(self, granularity: str, limits: Mapping[str, float]) -> float:
        """Return the highest density of the grid at which all matrices keep a limit in some way."""
        for density in (1.0, *reversed(DENSITIES)):
            times = self.uniform(granularity, density)
            if any(times[way] <= limit for way, limit in limits.items()):
                return density
        return LOWEST


@torch.no_grad()
def matrix_options(
    model: nn.Module,
    table: TimeTable,
    batches: Sequence[Mapping[str, Any]],
    density: float,
    saved: ProgressFile | None = None,
    reporter: ProgressReporter | None = None,
) -> dict[str, list[MatrixOption]]:
    """Return the options of each matrix: dense, and each granularity at each density of the grid.

    Errors are measured as in :func:`sparsebert.one_shot.allocation.allocated`, at two densities of each
    granularity, and interpolated.

    Args:
        model: The dense model; unchanged at the end.
        table: The milliseconds.
        batches: Calibration batches, of which the first texts are used.
        density: A density near those that will be allocated.
        saved: Matrices that a killed run has measured.
        reporter: Told of each matrix.
    """
    first = next(iter(table.targets))
    top = min(max(density, 4 * LOWEST), HIGHEST_MEASURED)
    measured = tuple(share * top for share in MEASURED)

    def points(key: str, problem: LayerProblem, change: Change) -> dict[str, list[tuple[float, float]]]:
        return {
            granularity: errors_at(problem, change, targets[key], measured)
            for granularity, targets in table.targets.items()
        }

    by_key = measured_alone(model, table.targets[first], batches, points, saved, reporter)
    options: dict[str, list[MatrixOption]] = {}
    for key, of_key in by_key.items():
        options[key] = [MatrixOption(first, 1.0, 0.0, table.milliseconds(first, key, 1.0))]
        for granularity, (low, high) in of_key.items():
            curve = ErrorCurve.through(low, high)
            options[key] += [
                MatrixOption(granularity, share, curve.at(share), table.milliseconds(granularity, key, share))
                for share in DENSITIES
            ]
    return options


def cheapest(options: Mapping[str, Sequence[MatrixOption]], way: str) -> Allocation:
    """Return the fastest option of each matrix in a way, the densest of equally fast ones."""
    picked = {
        key: min(each, key=lambda option: (option.milliseconds[way], -option.density))
        for key, each in options.items()
    }
    return _allocation(way, picked)


def choose_within(
    options: Mapping[str, Sequence[MatrixOption]], limits: Mapping[str, float]
) -> Allocation | None:
    """Return the options with the least sum of errors within the limit of one of the ways.

    The dynamic programme of :func:`sparsebert.one_shot.budgets.choose` is solved for each way; of equal sums
    the fastest is taken. The time may exceed the limit by half a step of the programme for each matrix.

    Args:
        options: The options of each matrix.
        limits: Milliseconds for all matrices, by way.

    Returns:
        The allocation; None if the fastest options exceed the limit in every way.
    """
    within = [_within(options, way, limit) for way, limit in limits.items()]
    affordable = [each for each in within if each is not None]
    return min(affordable, key=lambda each: (each.error, each.milliseconds), default=None)


def _within(options: Mapping[str, Sequence[MatrixOption]], way: str, limit: float) -> Allocation | None:
    fastest = cheapest(options, way)
    # The programme cuts costs to whole steps: with half a step more, it rounds them.
    half = limit / STEPS / 2
    if fastest.milliseconds + half * len(options) > limit:
        return fastest if fastest.milliseconds <= limit else None
    costs = {
        key: [Option(option.error, option.milliseconds[way] + half) for option in each]
        for key, each in options.items()
    }
    return _allocation(way, {key: options[key][index] for key, index in choose(costs, limit).items()})


def _allocation(way: str, options: Mapping[str, MatrixOption]) -> Allocation:
    return Allocation(
        way,
        options,
        sum(option.milliseconds[way] for option in options.values()),
        sum(option.error for option in options.values()),
    )
