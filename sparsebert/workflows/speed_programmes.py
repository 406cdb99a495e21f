"""What a model keeps within a predicted time: densities of matrices, numbers of units, or one sparsity."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any, NamedTuple, Protocol

import torch

from sparsebert.cost import gpu_roofline
from sparsebert.cost.work import WorkEstimate
from sparsebert.one_shot.budgets import Option, choose
from sparsebert.one_shot.layer_problem import Target
from sparsebert.one_shot.layerwise import cost_of_pruning
from sparsebert.one_shot.progress import ALLOCATE, Listener, ProgressReporter
from sparsebert.one_shot.progress_file import ProgressFile
from sparsebert.one_shot.time_budget import (
    DENSITIES,
    LOWEST,
    Allocation,
    MatrixOption,
    TimeTable,
    at_density,
    cheapest,
    choose_within,
    matrix_options,
    random_mask,
)
from sparsebert.one_shot.unit_columns import reader_of
from sparsebert.one_shot.unit_costs import Workload, unit_costs
from sparsebert.one_shot.unit_table import Row, unit_table
from sparsebert.planning.encoder_plan import LAYERS
from sparsebert.planning.mask_costs import MaskCosts
from sparsebert.pruning import prune
from sparsebert.pruning.unit_groups import UnitGroup
from sparsebert.tickets.ticket import Ticket

Batches = Sequence[Mapping[str, Any]]


class Limit(NamedTuple):
    """The time that a programme may spend, in predicted milliseconds.

    Attributes:
        milliseconds: Time of the encoder.
        slowdown: Time of pruned matrices relative to their prediction, as timings told. Dense matrices and
            all else are taken as predicted, so that a form that is slower than predicted loses to dense.
    """

    milliseconds: float
    slowdown: float = 1.0


# The limit by the way in which the encoder runs.
LimitOf = Callable[[str], Limit]


@dataclass(frozen=True)
class Proposal:
    """What a model keeps.

    Attributes:
        way: The way in which the encoder runs, as predicted.
        pruned: Predicted milliseconds of the pruned matrices.
        rest: Predicted milliseconds of all else in the encoder.
        ticket: Random masks of this kind, to time.
        densities: Share of weights to keep by key; empty for one sparsity of all matrices.
        granularities: Granularity by key; empty where all have the same.
        error: Predicted sum of the errors; None for one sparsity of all matrices.
        reached: Whether the predicted time is within the limit.
    """

    way: str
    pruned: float
    rest: float
    ticket: Ticket
    densities: Mapping[str, float]
    granularities: Mapping[str, str]
    error: float | None
    reached: bool

    @property
    def milliseconds(self) -> float:
        """Predicted time of the encoder, before it is corrected by timings."""
        return self.pruned + self.rest

    @property
    def loss(self) -> float:
        """What the proposal costs, to compare choices of one programme."""
        return self.ticket.sparsity if self.error is None else self.error

    def __str__(self) -> str:
        """Return what is kept, in words."""
        pruned = {self.granularities.get(key, "") for key, each in self.densities.items() if each < 1}
        kinds = f" ({', '.join(sorted(pruned))})" if self.granularities else ""
        return f"{self.ticket.sparsity:.1%} sparsity{kinds}"


class Programme(Protocol):
    """Chooses what a model keeps within a time.

    Attributes:
        dense: Predicted milliseconds of the encoder in its fastest dense form.
    """

    dense: float

    def within(self, limit_of: LimitOf) -> Proposal:
        """Return the best proposal within the limit of one of the ways; the fastest one if there is none."""


@dataclass
class MatrixProgramme:
    """Densities, and granularities if there are several, that cost the last hidden states least.

    Attributes:
        model: The dense model.
        batches: Calibration batches.
        table: Milliseconds of its matrices.
        costs: The cost model.
        saved: Matrices that a killed run has measured.
        progress: Called with a report of each matrix that is measured.
    """

    model: Any
    batches: Batches
    table: TimeTable
    costs: MaskCosts
    saved: ProgressFile = field(default_factory=ProgressFile)
    progress: Listener | None = None

    def __post_init__(self) -> None:
        self.dense = self.costs.dense
        self._options: dict[str, list[MatrixOption]] = {}

    def within(self, limit_of: LimitOf) -> Proposal:
        """Return the proposal of the dynamic programme."""
        rest = self.costs.rest
        limits = {way: limit_of(way).milliseconds - each for way, each in rest.items()}
        if not self._options:
            first = next(iter(self.table.targets))
            # Curves of one run are measured at the same densities, also if it was killed.
            density = self.saved.notes.get("density") or self.table.uniform_density(first, limits)
            self.saved.add(density=density)
            reporter = _reporter(self.table.targets[first], self.progress)
            self._options = matrix_options(
                self.model, self.table, self.batches, density, self.saved, reporter
            )
        slowdowns = {way: limit_of(way).slowdown for way in limits}
        options = {key: [each.slower(slowdowns) for each in some] for key, some in self._options.items()}
        allocation = choose_within(options, limits)
        if allocation is not None:
            return self._proposal(allocation, reached=True)
        fastest = [cheapest(options, way) for way in limits]
        return self._proposal(
            min(fastest, key=lambda each: each.milliseconds + rest[each.way]), reached=False
        )

    def _proposal(self, allocation: Allocation, reached: bool) -> Proposal:
        targets = self.table.targets
        masks = {
            key: random_mask(at_density(targets[option.granularity][key], option.density))
            for key, option in allocation.options.items()
        }
        several, way = len(targets) > 1, allocation.way
        times = [
            (option.density, self.table.milliseconds(option.granularity, key, option.density)[way])
            for key, option in allocation.options.items()
        ]
        return Proposal(
            way,
            sum(each for density, each in times if density < 1),
            self.costs.rest[way] + sum(each for density, each in times if density == 1),
            Ticket(masks),
            {key: option.density for key, option in allocation.options.items()},
            {key: option.granularity for key, option in allocation.options.items()} if several else {},
            allocation.error,
            reached,
        )


@dataclass
class UnitProgramme:
    """Numbers of heads and neurons of each layer that cost the last hidden states least.

    Attributes:
        model: The dense model.
        batches: Calibration batches.
        method: The method that removes units.
        groups: The heads or neurons of each layer.
        workload: The size of the batches to run.
        costs: The cost model; the whole model runs dense.
        saved: Layers that a killed run has measured.
        progress: Called with a report of each layer that is measured.
    """

    model: Any
    batches: Batches
    method: Any
    groups: Sequence[UnitGroup]
    workload: Workload
    costs: MaskCosts
    saved: ProgressFile = field(default_factory=ProgressFile)
    progress: Listener | None = None

    def __post_init__(self) -> None:
        self.dense = self.costs.dense
        self._rows: dict[str, list[Row]] = {}
        self._rest = 0.0

    def within(self, limit_of: LimitOf) -> Proposal:
        """Return the proposal of the dynamic programme over the numbers of units."""
        if not self._rows:
            self._measure()
        options = {key: [Option(row.error, row.cost) for row in rows] for key, rows in self._rows.items()}
        limit = (limit_of(LAYERS).milliseconds - self._rest) / limit_of(LAYERS).slowdown
        reached = limit >= sum(min(option.cost for option in each) for each in options.values())
        if reached:
            indices = choose(options, limit)
        else:
            indices = {key: len(rows) - 1 for key, rows in self._rows.items()}
        rows = {key: self._rows[key][index] for key, index in indices.items()}
        return Proposal(
            LAYERS,
            sum(row.cost for row in rows.values()),
            self._rest,
            Ticket(self._masks({key: row.kept for key, row in rows.items()})),
            {key: row.kept / self._rows[key][0].kept for key, row in rows.items()},
            {},
            sum(row.error for row in rows.values()),
            reached,
        )

    def _measure(self) -> None:
        costs = unit_costs(self.groups, "milliseconds", self.workload, self.costs.dtype)
        targets = {each.name: Target(each, Fraction(1, 2)) for each in map(reader_of, self.groups)}
        reporter = _reporter(targets, self.progress)
        rows = unit_table(self.model, self.groups, self.batches, self.method, costs, self.saved, reporter)
        if self.costs.device is not None:
            group_of = {reader_of(group).name: group for group in self.groups}
            rows = {
                key: [row._replace(cost=self._on_gpu(group_of[key], row.kept)) for row in each]
                for key, each in rows.items()
            }
        self._rows = rows
        # All but the units: what the dense encoder takes without them.
        self._rest = self.dense - sum(each[0].cost for each in rows.values())

    def _on_gpu(self, group: UnitGroup, kept: int) -> float:
        """Return the modelled milliseconds of a layer's matrices with some of their units."""
        assert self.costs.device is not None
        roofline = gpu_roofline.Roofline(self.costs.device, self.costs.dtype, self.costs.tokens)
        seconds = 0.0
        for key, (rows, columns) in group.shapes.items():
            cut = group.parts[key].block[1] is not None  # columns of the last matrix, rows of the others
            share = kept / group.grid[0]
            shape = (rows, round(share * columns)) if cut else (round(share * rows), columns)
            if kept:
                seconds += roofline.seconds(WorkEstimate("dense", 0, 0, 0, shape=shape))
        return 1e3 * seconds

    def _masks(self, kept: Mapping[str, int]) -> dict[str, torch.Tensor]:
        """Return random masks that keep these numbers of units, by the key of the matrix that reads them."""
        generator = torch.Generator().manual_seed(0)
        masks: dict[str, torch.Tensor] = {}
        for group in self.groups:
            units = torch.zeros(group.grid[0], dtype=torch.bool)
            units[torch.randperm(len(units), generator=generator)[: kept[reader_of(group).name]]] = True
            masks |= group.expand(units.view(group.grid))
        return masks


@dataclass
class UniformProgramme:
    """One sparsity of all matrices or layers.

    Attributes:
        model: The dense model without its head.
        pruning: Arguments of :func:`sparsebert.prune`.
        costs: The cost model.
        table: Milliseconds of its matrices; None for units, whose time is taken to be proportional.
    """

    model: Any
    pruning: Mapping[str, Any]
    costs: MaskCosts
    table: TimeTable | None = None

    def __post_init__(self) -> None:
        self.dense = self.costs.dense

    def within(self, limit_of: LimitOf) -> Proposal:
        """Return the highest density whose predicted time is within a limit."""
        densities = {way: self._densest(way, limit_of(way)) for way in self.costs.rest}
        way = max(densities, key=lambda each: densities[each])
        density, rest = densities[way], self.costs.rest[way]
        milliseconds = self._milliseconds(density, way)
        pruned, dense = (0.0, milliseconds) if density == 1 else (milliseconds, 0.0)
        options: dict[str, Any] = {"scope": "matrix", **self.pruning}
        ticket = prune(self.model, "random", sparsity=round(1 - density, 4), **options)
        limit, slowdown = limit_of(way)
        reached = rest + dense + slowdown * pruned <= limit or density > LOWEST
        return Proposal(way, pruned, rest + dense, ticket, {}, {}, None, reached)

    def _densest(self, way: str, limit: Limit) -> float:
        """Return the highest density within a limit, interpolated in the grid; else the lowest."""
        goal = limit.milliseconds - self.costs.rest[way]
        above: tuple[float, float] | None = None
        for density in (1.0, *reversed(DENSITIES)):
            slowdown = limit.slowdown if density < 1 else 1.0
            milliseconds = slowdown * self._milliseconds(density, way)
            if milliseconds <= goal:
                if above is None:
                    return density
                return density + (goal - milliseconds) / (above[1] - milliseconds) * (above[0] - density)
            above = (density, milliseconds)
        return LOWEST

    def _milliseconds(self, density: float, way: str) -> float:
        if self.table is None:
            return density * (self.costs.dense - self.costs.rest[way])
        return self.table.uniform(next(iter(self.table.targets)), density)[way]


def _reporter(targets: Mapping[str, Target], progress: Listener | None) -> ProgressReporter:
    """Return what reports each matrix that is measured."""
    return ProgressReporter(
        {(ALLOCATE, key): cost_of_pruning(target) for key, target in targets.items()}, progress
    )
