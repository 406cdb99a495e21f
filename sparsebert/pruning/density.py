"""Exact densities: one share of weights to keep for all units, or one for each kind of unit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from decimal import Decimal
from fractions import Fraction
from numbers import Real

from sparsebert.pruning.granularity import Granularity, kinds_in
from sparsebert.pruning.unit_groups import UnitGroup

Number = float | Decimal | Fraction
Density = Fraction | Mapping[str, Fraction]


def parse_sparsity(sparsity: Number | Mapping[str, Number] | None, units: Granularity) -> Density:
    """Return the density that a sparsity leaves.

    Args:
        sparsity: A number in [0, 1), read exactly as its decimal spelling; one number for each kind of unit
            of a joined granularity; or None for an n:m pattern, which implies its sparsity.
        units: The granularity.

    Raises:
        ValueError: The sparsity is missing, outside [0, 1) or different from the pattern's, or its kinds
            differ from the granularity's.
    """
    if not isinstance(sparsity, Mapping):
        return _density(sparsity, units)
    kinds = kinds_in(units.name)
    if len(kinds) < 2 or sparsity.keys() != set(kinds):
        raise ValueError(
            f"shares of {' and '.join(sparsity)} do not fit granularity {units.name!r}: give one for each "
            "kind of unit of a joined granularity, such as head and neuron of 'head+neuron'"
        )
    return {kind: _density(sparsity[kind], units) for kind in kinds}


def density_of(groups: Sequence[UnitGroup], density: Density) -> Fraction:
    """Return the density of groups that compete with each other.

    Raises ValueError if kinds with separate densities compete.
    """
    if isinstance(density, Fraction):
        return density
    kinds = {group.kind for group in groups}
    if len(kinds) > 1:
        raise ValueError(
            f"{' and '.join(sorted(kinds))} compete with each other in scope 'global': for separate shares "
            "use another scope, such as 'type' or 'heads-by-layer'"
        )
    return density[kinds.pop()]


def as_sparsity(density: Density) -> float | dict[str, float]:
    """Return the sparsity of a density in plain numbers."""
    if isinstance(density, Fraction):
        return float(1 - density)
    return {kind: float(1 - each) for kind, each in density.items()}


def _density(sparsity: Number | None, units: Granularity) -> Fraction:
    if units.pattern:
        n, m = units.pattern
        if sparsity is not None and abs(float(sparsity) - (1 - n / m)) > 1e-6:
            raise ValueError(f"granularity '{n}:{m}' means sparsity {1 - n / m:.6g}, got {sparsity}")
        return Fraction(n, m)
    if sparsity is None:
        raise ValueError("sparsity is missing: give the share of weights to prune, in [0, 1)")
    if isinstance(sparsity, bool) or not isinstance(sparsity, (Real, Decimal)) or not 0 <= sparsity < 1:
        raise ValueError(f"sparsity must be a number in [0, 1), got {sparsity!r}")
    # Converted through its decimal spelling: the float 0.29 is slightly less than 29 %.
    return 1 - Fraction(str(sparsity))
