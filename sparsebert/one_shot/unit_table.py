"""What each layer loses and costs at many numbers of heads or neurons, and the numbers that lose least."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from fractions import Fraction
from typing import Any, NamedTuple, Protocol

import torch
from torch import nn

from sparsebert.bert import weight_of
from sparsebert.one_shot.allocation import Change, measured_alone
from sparsebert.one_shot.budgets import Option, choose
from sparsebert.one_shot.layer_problem import LayerMethod, LayerProblem, Target
from sparsebert.one_shot.progress import ProgressReporter
from sparsebert.one_shot.progress_file import ProgressFile
from sparsebert.one_shot.unit_columns import reader_of
from sparsebert.one_shot.unit_costs import UnitCosts, Workload, unit_costs
from sparsebert.pruning.unit_groups import UnitGroup

# Neighbouring numbers of neurons of the table differ by this factor, down to this share of all, and then 0.
SHRINKAGE, LEAST = 0.9, 0.01


class SweepMethod(LayerMethod, Protocol):
    """A method that knows what a matrix loses at every number of units from one sweep."""

    def losses(self, problem: LayerProblem, target: Target, counts: Sequence[int]) -> list[float]: ...


class Row(NamedTuple):
    """One layer at one number of heads or neurons.

    Attributes:
        kept: Number of units.
        error: Relative squared change of the model's last hidden states if this layer alone is pruned.
        cost: What the layer costs, in the unit of the costs.
    """

    kept: int
    error: float
    cost: float


@torch.no_grad()
def unit_table(
    model: nn.Module,
    groups: Sequence[UnitGroup],
    batches: Sequence[Mapping[str, Any]],
    method: SweepMethod,
    costs: UnitCosts,
    saved: ProgressFile | None = None,
    reporter: ProgressReporter | None = None,
) -> dict[str, list[Row]]:
    """Return the rows of each layer, by the key of the matrix that reads the units, most units first.

    One sweep of each matrix tells its loss at every number of units; the model's last hidden states are
    compared at half of them, and set the scale of the layer.

    Args:
        model: The dense model; unchanged at the end.
        groups: The heads or neurons of each layer.
        batches: Calibration batches.
        method: The method that removes units.
        costs: Cost of a unit of each group.
        saved: Layers that a killed run has measured.
        reporter: Told of each layer.
    """
    group_of = {reader_of(group).name: group for group in groups}

    def errors(key: str, problem: LayerProblem, change: Change) -> list[tuple[int, float]]:
        group = group_of[key]
        units = group.grid[0]
        counts = _counts(units, group.kind)
        target = Target(reader_of(group), Fraction(max(1, units // 2), units))
        losses = dict(zip(counts, method.losses(problem, target, counts), strict=True))
        half = round(target.density * units)
        scale = change(method.prune_layer(problem, target).weight) / losses[half] if losses[half] else 0.0
        return [(count, scale * losses[count]) for count in counts]

    measured = measured_alone(model, group_of, batches, errors, saved, reporter)
    prices = {key: costs.of_unit[group.name] for key, group in group_of.items()}
    return {
        key: [Row(count, error, count * prices[key]) for count, error in measured[key]] for key in group_of
    }


def allocated_units(
    model: nn.Module,
    groups: Sequence[UnitGroup],
    targets: Mapping[str, Target],
    batches: Sequence[Mapping[str, Any]],
    method: SweepMethod,
    cost: str = "weights",
    table: Mapping[str, Sequence[Row]] | None = None,
    saved: ProgressFile | None = None,
    reporter: ProgressReporter | None = None,
) -> dict[str, Target]:
    """Return the targets with the numbers of units that change the model least, for the same cost.

    As in ZipLM, dynamic programming over :func:`unit_table`.

    Args:
        model: The dense model; unchanged at the end.
        groups: The heads or neurons of each layer.
        targets: Targets of the matrices that read them, each at the share of the cost to keep.
        batches: Calibration batches, of which the first texts are used.
        method: The method that removes units.
        cost: What is kept: see :func:`sparsebert.one_shot.unit_costs.unit_costs`.
        table: The rows of each layer; None to measure them.
        saved: Layers that a killed run has measured.
        reporter: Told of each layer.

    Raises:
        ValueError: Layers without heads and neurons cost more.
    """
    costs = unit_costs(groups, cost, Workload.of(batches), weight_of(model, groups[0].name).dtype)
    total = costs.total({group.name: group.grid[0] for group in groups})
    density = next(iter(targets.values())).density
    table = table or unit_table(model, groups, batches, method, costs, saved, reporter)
    options = {key: [Option(row.error, row.cost) for row in rows] for key, rows in table.items()}
    rows_to_keep = choose(options, costs.budget(density, total))
    return {
        key: replace(target, density=Fraction(table[key][rows_to_keep[key]].kept, table[key][0].kept))
        for key, target in targets.items()
    }


def table_by_weights(
    model: nn.Module,
    groups: Sequence[UnitGroup],
    batches: Sequence[Mapping[str, Any]],
    method: SweepMethod,
    saved: ProgressFile | None = None,
    reporter: ProgressReporter | None = None,
) -> dict[str, list[Row]]:
    """Return the rows of each layer, with the weights of its units as costs; see :func:`unit_table`."""
    dtype = weight_of(model, groups[0].name).dtype
    costs = unit_costs(groups, "weights", Workload.of(batches), dtype)
    return unit_table(model, groups, batches, method, costs, saved, reporter)


def _counts(units: int, kind: str) -> list[int]:
    """Return numbers of units, descending from all to none."""
    if kind == "head":
        return list(range(units, -1, -1))
    steps, share = {units, units // 2, 0}, 1.0
    while (share := share * SHRINKAGE) > LEAST:
        steps.add(round(share * units))
    return sorted(steps, reverse=True)
