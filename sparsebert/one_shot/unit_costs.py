"""What heads and neurons cost: weights, multiply-adds, or predicted milliseconds on this CPU."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sparsebert.cost.cpu_cost import cost_model
from sparsebert.pruning.unit_groups import UnitGroup
from sparsebert_kernels.errors import unknown

COSTS = ("weights", "flops", "milliseconds")


class UnitCosts(NamedTuple):
    """Costs of the units of each layer.

    Attributes:
        of_unit: Cost of a unit, by layer.
        fixed: Cost of all layers without any unit.
    """

    of_unit: dict[str, float]
    fixed: float

    def total(self, units: Mapping[str, int]) -> float:
        """Return the cost of these numbers of units."""
        return self.fixed + sum(count * self.of_unit[name] for name, count in units.items())

    def budget(self, density: Fraction, total: float) -> float:
        """Return what a share of the total cost leaves for units.

        Raises ValueError if that is less than the layers cost without any.
        """
        if density * Fraction(total) < self.fixed:
            rest = self.fixed / total
            raise ValueError(
                f"layers without heads and neurons take {rest:.0%} of the cost: sparsity must be at most "
                f"{1 - rest:.2f}, got {float(1 - density):g}"
            )
        return float(density * Fraction(total)) - self.fixed


class Workload(NamedTuple):
    """The size of the batches.

    Attributes:
        tokens: Tokens of a batch, padding included.
        length: Tokens of a text, without padding.
    """

    tokens: int
    length: float

    @classmethod
    def of(cls, batches: Sequence[Mapping[str, Any]]) -> Workload:
        """Return the mean size of some batches."""
        sizes, tokens, texts = 0, 0, 0
        for batch in batches:
            ids = next(x for x in batch.values() if isinstance(x, Tensor) and x.dim() > 1)
            mask = batch.get("attention_mask")
            sizes += math.prod(ids.shape[:2])
            tokens += int(mask.sum()) if isinstance(mask, Tensor) else math.prod(ids.shape[:2])
            texts += len(ids)
        return cls(max(1, round(sizes / len(batches))), tokens / texts)


def unit_costs(groups: Sequence[UnitGroup], cost: str, workload: Workload, dtype: torch.dtype) -> UnitCosts:
    """Return the costs of heads and neurons.

    Args:
        groups: The units of each layer.
        cost: "weights"; "flops", the multiply-adds of a text, in Kwon et al. 2022 those of heads include the
            products with queries and values; or "milliseconds" of a batch in dense layers, by the cost model
            of this machine (``sparsebert.cost.cpu_cost``), with products of heads at the price of weights.
        workload: The size of the batches.
        dtype: The layers' dtype.

    Raises:
        ValueError: ``cost`` is another.
    """
    if cost not in COSTS:
        raise unknown("cost of a unit", cost, COSTS)
    weights = {group.name: group.weights / math.prod(group.grid) for group in groups}
    if cost == "weights":
        return UnitCosts(weights, 0.0)
    # Of a head: each token's products with the queries and values of its text.
    products = {group.name: weights[group.name] for group in groups}
    for group in groups:
        if group.kind == "head":
            products[group.name] += 2 * workload.length * _head_size(group)
    if cost == "flops":
        return UnitCosts({name: workload.length * each for name, each in products.items()}, 0.0)
    dense = cost_model(dtype, workload.tokens).costs["dense"]
    per_stored, per_line = (1e3 * workload.tokens * each for each in (dense.per_stored, dense.per_line))
    fixed = 0.0
    of_unit: dict[str, float] = {}
    for group in groups:
        units = math.prod(group.grid)
        shared, lines = 0, 0
        for key, shape in group.shapes.items():
            cut = group.parts[key].block[1] is not None  # columns of the last matrix, rows of the others
            lines += shape[1] if cut else shape[0]
            shared += shape[0] if cut else shape[1]
        of_unit[group.name] = per_stored * products[group.name] + per_line * lines / units
        fixed += 1e3 * dense.fixed * len(group.shapes) + per_line * shared
    return UnitCosts(of_unit, fixed)


def _head_size(group: UnitGroup) -> int:
    (columns,) = (each.block[1] for each in group.parts.values() if each.block[1] is not None)
    return columns
