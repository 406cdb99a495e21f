"""Units of a model: weights that are pruned together, in one matrix or across several matrices of a layer."""

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
    """A rule that combines the scores of a unit's weights into one.

    Attributes:
        fill: Padding of units with fewer weights.
        reduce: Maps padded scores [..., weights] and the number of weights of each unit to float32 [...].
    """

    fill: float
    reduce: Callable[[Tensor, Tensor], Tensor]


POOLING = {
    "mean": Pooling(0.0, lambda tiles, count: (tiles.sum(-1, dtype=torch.float64) / count).float()),
    "rms": Pooling(0.0, lambda tiles, count: (tiles.double().square().sum(-1) / count).sqrt().float()),
    "max": Pooling(-math.inf, lambda tiles, count: tiles.amax(-1)),
}


@dataclass(frozen=True)
class UnitGroup:
    """One matrix cut into units, or several whose i-th units together are unit i of the group.

    Attributes:
        parts: key -> granularity at which its matrix is cut.
        shapes: key -> [out, in].
    """

    parts: Mapping[str, Granularity]
    shapes: Mapping[str, torch.Size]

    @property
    def name(self) -> str:
        """The key of the first matrix."""
        return next(iter(self.parts))

    @property
    def kind(self) -> str:
        """The name of the units' granularity."""
        return self.parts[self.name].name

    @property
    def quantum(self) -> int:
        """Number of units of which each row of units keeps a multiple; 1 for units that are not panels."""
        return self.parts[self.name].quantum

    @property
    def weights(self) -> int:
        """Number of weights of all units."""
        return sum(math.prod(shape) for shape in self.shapes.values())

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of the grid of units; one column for units across matrices."""
        rows, columns = self.parts[self.name].units(self.shapes[self.name])
        return (rows, columns) if len(self.parts) == 1 else (rows * columns, 1)

    @property
    def sizes(self) -> Tensor | int:
        """Number of weights of each unit: one int if all are equal, else int64 in the shape of the grid."""
        sizes = [units.sizes(self.shapes[key]) for key, units in self.parts.items()]
        return sum(sizes[1:], start=sizes[0])

    def pool(self, scores: Mapping[str, Tensor], rule: str) -> Tensor:
        """Return the float32 score of each unit, pooled from scores [out, in] by a rule of ``POOLING``."""
        if len(self.parts) == 1 and self.grid == tuple(self.shapes[self.name]):
            return scores[self.name]
        pooling = POOLING[rule]
        tiles = [units.tiles(scores[key], pooling.fill) for key, units in self.parts.items()]
        whole = tiles[0] if len(tiles) == 1 else torch.cat([each.flatten(0, 1) for each in tiles], 1)
        return pooling.reduce(whole, torch.as_tensor(self.sizes)).view(self.grid)

    def whole(self, masks: Mapping[str, Tensor]) -> Tensor:
        """Return the mask over units of masks [out, in].

        Raises ValueError, naming the group, if the masks keep parts of units.
        """
        share = self.pool({key: masks[key].float() for key in self.parts}, "mean")
        if ((share > 0) & (share < 1)).any():
            raise ValueError(
                f"the ticket prunes parts of units of {self.name}: use the granularity that it was made with"
            )
        return share > 0

    def expand(self, kept: Tensor) -> dict[str, Tensor]:
        """Return key -> mask [out, in] of a mask over units."""
        return {
            key: units.expand(kept.view(units.units(self.shapes[key])), self.shapes[key])
            for key, units in self.parts.items()
        }


def unit_groups(
    name: str,
    block_size: tuple[int, int] | None,
    shapes: Mapping[str, torch.Size],
    structure: Structure | None,
    round_to: int | None = None,
) -> tuple[UnitGroup, ...]:
    """Cut matrices into units, in model order, kind by kind.

    Args:
        name: Name of the granularity.
        block_size: (out, in) of a block, or of a unit of a panel.
        shapes: key -> [out, in] of the matrices. Matrices without weights in such units are in no group;
            matrices that share units must all be present.
        structure: Structure of the model, needed for neurons, heads and MLPs.
        round_to: Columns of which each panel keeps a multiple.

    Raises:
        ValueError: See :func:`parse_granularity`; or the structure is needed and missing; or shapes differ
            from the structure, as those of compacted heads do.
    """
    granularity = parse_granularity(name, block_size, round_to)
    kinds = kinds_in(name)
    if not kinds:
        return tuple(UnitGroup({key: granularity}, {key: shape}) for key, shape in shapes.items())
    if structure is None:
        raise ValueError(f"granularity {name!r} has units across matrices: pass the model to locate them")
    groups = [parts for kind in kinds for parts in _across(kind, structure, shapes)]
    return tuple(_checked(UnitGroup(parts, {key: shapes[key] for key in parts})) for parts in groups)


def competition_groups(
    groups: Sequence[UnitGroup], scope: str, types: Mapping[str, str]
) -> list[list[UnitGroup]]:
    """Return lists of the groups whose units compete with each other.

    Args:
        groups: All groups.
        scope: "global" (all groups), "matrix" (each by itself), "type" (those of one type) or
            "heads-by-layer" (the heads of a layer; all neurons and MLPs).
        types: key -> type of matrix.

    Raises:
        ValueError: Scope "heads-by-layer" for units other than heads, neurons and MLPs.
    """
    if scope == HEADS_BY_LAYER and not {group.kind for group in groups} <= set(ACROSS_MATRICES):
        raise ValueError(f"scope {scope!r} is for heads, neurons and MLPs, not {groups[0].kind!r}")
    competitions: dict[str, list[UnitGroup]] = defaultdict(list)
    for group in groups:
        names = {
            "global": "",
            "matrix": group.name,
            "type": types[group.name],
            HEADS_BY_LAYER: group.name if group.kind == "head" else "",
        }
        competitions[names[scope]].append(group)
    return list(competitions.values())


def _across(
    kind: str, structure: Structure, shapes: Mapping[str, torch.Size]
) -> list[dict[str, Granularity]]:
    """Return, for each layer, the matrices that have such units: key -> granularity."""
    if kind == "head":
        return [_head_cuts(keys, structure, shapes) for keys in structure.heads]
    width = None if kind == "mlp" else 1
    return [_cuts(kind, keys, structure, [width] * len(keys)) for keys in structure.neurons]


def _head_cuts(
    keys: Sequence[str], structure: Structure, shapes: Mapping[str, torch.Size]
) -> dict[str, Granularity]:
    query, count = keys[0], structure.heads_of(keys)
    if structure.head_size and shapes[query][0] != count * structure.head_size:
        raise ValueError(
            f"{query} has {shapes[query][0]} rows for {count} heads of {structure.head_size}: prune heads "
            "before compacting the model"
        )
    rows = [shapes[key][0] // (count * structure.folds.get(key, 1)) for key in keys[:-1]]
    return _cuts("head", keys, structure, [*rows, shapes[keys[-1]][1] // count])


def _cuts(
    kind: str, keys: Sequence[str], structure: Structure, widths: Sequence[int | None]
) -> dict[str, Granularity]:
    """Cut the rows of all matrices but the last, and the columns of the last."""
    *sources, last = keys
    cuts = {
        key: Granularity(kind, (width, None), fold=structure.folds.get(key, 1))
        for key, width in zip(sources, widths, strict=False)
    }
    return cuts | {last: Granularity(kind, (None, widths[-1]))}


def _checked(group: UnitGroup) -> UnitGroup:
    counts = {key: math.prod(units.units(group.shapes[key])) for key, units in group.parts.items()}
    if len(set(counts.values())) > 1 or not isinstance(group.sizes, int):
        raise ValueError(f"the units of {group.name} do not fit the other matrices of its layer: {counts}")
    return group
