"""Units of a model: which weights are pruned together, in one matrix or in several that belong together."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from sparsebert.bert import Structure
from sparsebert.pruning.granularity import ACROSS_MATRICES, Granularity, kinds_in, parse_granularity

HEADS_BY_LAYER = "heads-by-layer"
SCOPES = ("global", "matrix", "type", HEADS_BY_LAYER)


class Pooling(NamedTuple):
    """How the scores of a unit's weights become one: ``reduce`` maps scores [..., weights], filled up with
    ``fill``, and the number of weights in each unit to float32 [...]."""

    fill: float
    reduce: Callable[[Tensor, Tensor], Tensor]


POOLING = {
    "mean": Pooling(0.0, lambda tiles, count: (tiles.sum(-1, dtype=torch.float64) / count).float()),
    "rms": Pooling(0.0, lambda tiles, count: (tiles.double().square().sum(-1) / count).sqrt().float()),
    "max": Pooling(-math.inf, lambda tiles, count: tiles.amax(-1)),
}


@dataclass(frozen=True)
class UnitGroup:
    """One matrix cut into units; or several, and unit i is unit i of all of them together.

    ``parts``: key -> how its matrix is cut. ``shapes``: key -> [out, in].
    """

    parts: Mapping[str, Granularity]
    shapes: Mapping[str, torch.Size]

    @property
    def name(self) -> str:
        """The key of its first matrix."""
        return next(iter(self.parts))

    @property
    def kind(self) -> str:
        """The granularity of its units."""
        return self.parts[self.name].name

    @property
    def weights(self) -> int:
        return sum(math.prod(shape) for shape in self.shapes.values())

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of the grid of units; one column where several matrices share them."""
        rows, columns = self.parts[self.name].units(self.shapes[self.name])
        return (rows, columns) if len(self.parts) == 1 else (rows * columns, 1)

    @property
    def sizes(self) -> Tensor | int:
        """Weights in each unit: an int if all are alike, else int64 of the grid's shape."""
        sizes = [units.sizes(self.shapes[key]) for key, units in self.parts.items()]
        return sum(sizes[1:], start=sizes[0])

    def pool(self, scores: Mapping[str, Tensor], rule: str) -> Tensor:
        """float32 score of each unit from the scores [out, in] of its weights, by a rule of POOLING."""
        if len(self.parts) == 1 and self.grid == tuple(self.shapes[self.name]):
            return scores[self.name]
        pooling = POOLING[rule]
        tiles = [units.tiles(scores[key], pooling.fill) for key, units in self.parts.items()]
        whole = tiles[0] if len(tiles) == 1 else torch.cat([each.flatten(0, 1) for each in tiles], 1)
        return pooling.reduce(whole, torch.as_tensor(self.sizes)).view(self.grid)

    def whole(self, masks: Mapping[str, Tensor]) -> Tensor:
        """The units that masks [out, in] keep, as a mask over units.

        Raises ValueError, naming the group, for masks that keep parts of units.
        """
        share = self.pool({key: masks[key].float() for key in self.parts}, "mean")
        if ((share > 0) & (share < 1)).any():
            raise ValueError(
                f"the ticket prunes parts of units of {self.name}: it was made at another granularity"
            )
        return share > 0

    def expand(self, kept: Tensor) -> dict[str, Tensor]:
        """Key -> mask [out, in] of a mask over units."""
        return {
            key: units.expand(kept.view(units.units(self.shapes[key])), self.shapes[key])
            for key, units in self.parts.items()
        }


def unit_groups(
    name: str,
    block_size: tuple[int, int] | None,
    shapes: Mapping[str, torch.Size],
    structure: Structure | None,
) -> tuple[UnitGroup, ...]:
    """The matrices of those shapes cut into units of that granularity, in model order, kind by kind.

    Neurons, heads and whole MLPs touch only the matrices that they have weights in; the others are in no
    group. All matrices that share units must be there. ``structure``: needed for these kinds.

    Raises ValueError as :func:`parse_granularity` does, for such kinds without a structure, or where
    matrices have other shapes than their layer's structure says, as the heads of a compacted model have.
    """
    granularity = parse_granularity(name, block_size)
    kinds = kinds_in(name)
    if not kinds:
        return tuple(UnitGroup({key: granularity}, {key: shape}) for key, shape in shapes.items())
    if structure is None:
        raise ValueError(f"granularity {name!r} lies across matrices: the model is needed to say which")
    groups = [parts for kind in kinds for parts in _across(kind, structure, shapes)]
    return tuple(_checked(UnitGroup(parts, {key: shapes[key] for key in parts})) for parts in groups)


def rivals(groups: Sequence[UnitGroup], scope: str, types: Mapping[str, str]) -> list[list[UnitGroup]]:
    """The groups whose units compete with each other: all, each by itself, or those of one type; or heads
    within their layer, and all other units with each other.

    Raises ValueError for the last of these where there are neither heads nor neurons nor MLPs.
    """
    if scope == HEADS_BY_LAYER and not {group.kind for group in groups} <= set(ACROSS_MATRICES):
        raise ValueError(f"scope {scope!r} is for heads, neurons and MLPs, not {groups[0].kind!r}")
    found: dict[str, list[UnitGroup]] = defaultdict(list)
    for group in groups:
        arenas = {
            "global": "",
            "matrix": group.name,
            "type": types[group.name],
            HEADS_BY_LAYER: group.name if group.kind == "head" else "",
        }
        found[arenas[scope]].append(group)
    return list(found.values())


def _across(
    kind: str, structure: Structure, shapes: Mapping[str, torch.Size]
) -> list[dict[str, Granularity]]:
    """How the matrices of each layer that have such units are cut."""
    if kind == "head":
        for query, *_ in structure.heads:
            if shapes[query][0] != structure.num_heads * structure.head_size:
                raise ValueError(
                    f"{query} has {shapes[query][0]} rows for {structure.num_heads} heads of "
                    f"{structure.head_size}: heads are chosen before a model is compacted"
                )
        rows = Granularity(kind, (structure.head_size, None))
        columns = Granularity(kind, (None, structure.head_size))
        return [dict(zip(keys, (rows, rows, rows, columns), strict=True)) for keys in structure.heads]
    cuts = (Granularity(kind, (1, None)), Granularity(kind, (None, 1)))
    if kind == "mlp":
        cuts = (Granularity(kind, (None, None)), Granularity(kind, (None, None)))
    return [dict(zip(keys, cuts, strict=True)) for keys in structure.neurons]


def _checked(group: UnitGroup) -> UnitGroup:
    counts = {key: math.prod(units.units(group.shapes[key])) for key, units in group.parts.items()}
    if len(set(counts.values())) > 1 or not isinstance(group.sizes, int):
        raise ValueError(f"the units of {group.name} do not fit the matrices beside it: {counts}")
    return group
