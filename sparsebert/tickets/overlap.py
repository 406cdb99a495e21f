"""How much tickets have in common: the Jaccard index of their kept weights.

Chen et al. (NeurIPS 2020) compare the masks of tasks by it: weights that both keep over weights that either
keeps. Beside each index stands what chance gives: independent masks with the same densities.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from sparsebert.tickets.apply import shape_text
from sparsebert.tickets.bits import pack_bits

if TYPE_CHECKING:
    from sparsebert.tickets.ticket import Ticket


@dataclass(frozen=True, eq=False)
class PackedMasks:
    """The masks of a ticket as bits, an eighth of their size in memory.

    Attributes:
        shapes: Key -> "768x3072".
        weights, kept: Key -> number of weights, and of kept ones.
        bits: Key -> uint8 [ceil(weights / 8)].
        linears: Encoder matrices of the ticket's model; None if the ticket does not record them.
    """

    shapes: dict[str, str]
    weights: dict[str, int]
    kept: dict[str, int]
    bits: dict[str, np.ndarray]
    linears: int | None

    @classmethod
    def of(cls, ticket: Ticket) -> PackedMasks:
        """Pack the weight masks of a ticket."""
        bits = {key: pack_bits(mask).numpy() for key, mask in ticket.masks.items()}
        return cls(
            shapes={key: shape_text(mask) for key, mask in ticket.masks.items()},
            weights={key: mask.numel() for key, mask in ticket.masks.items()},
            kept={key: _count(packed) for key, packed in bits.items()},
            bits=bits,
            linears=(ticket.metadata.get("model") or {}).get("linears"),
        )


@dataclass(frozen=True, eq=False)
class Overlap:
    """The Jaccard indices of every two tickets.

    Attributes:
        names: Names of the tickets.
        matrices: Number of matrices that are compared.
        jaccard: float64 [tickets, tickets].
        chance: float64 [tickets, tickets]: the index of independent masks with the same density in each
            matrix, as a ratio of expectations; the diagonal is 1.
        note: One line on matrices that not every ticket has; "" if all have the same.
    """

    names: tuple[str, ...]
    matrices: int
    jaccard: np.ndarray
    chance: np.ndarray
    note: str


def overlap(tickets: Mapping[str, PackedMasks]) -> Overlap:
    """Compare tickets on the matrices that all of them have.

    Args:
        tickets: Name -> masks.

    Raises:
        ValueError: There are fewer than two tickets, or they are of different models.
    """
    if len(tickets) < 2:
        raise ValueError(f"an overlap needs at least two tickets, got {len(tickets)}")
    keys = common_matrices(tickets)
    masks = list(tickets.values())
    jaccard, chance = np.eye(len(masks)), np.eye(len(masks))
    for i, one in enumerate(masks):
        for j, other in enumerate(masks[:i]):
            both = sum(_count(one.bits[key] & other.bits[key]) for key in keys)
            by_chance = sum(one.kept[key] * other.kept[key] / one.weights[key] for key in keys)
            kept = sum(one.kept[key] + other.kept[key] for key in keys)
            for table, shared in ((jaccard, both), (chance, by_chance)):
                table[i, j] = table[j, i] = shared / (kept - shared) if kept else 1.0
    return Overlap(tuple(tickets), len(keys), jaccard, chance, _left_out(tickets, keys))


def common_matrices(tickets: Mapping[str, PackedMasks]) -> list[str]:
    """Return the keys that all tickets have, in the order of the first.

    Raises:
        ValueError: In one line, for tickets of different models: a matrix has two shapes, their models have
            different numbers of encoder matrices, or no matrix is in all of them.
    """
    (first, one), *others = tickets.items()
    for name, other in others:
        counts = one.linears, other.linears
        if None not in counts and counts[0] != counts[1]:
            raise ValueError(
                f"tickets of different models: {first} is for {counts[0]} encoder matrices, {name} for "
                f"{counts[1]}"
            )
        for key, shape in one.shapes.items():
            if other.shapes.get(key, shape) != shape:
                raise ValueError(
                    f"tickets of different models: {key} is {shape} in {first} and {other.shapes[key]} in "
                    f"{name}"
                )
    keys = [key for key in one.shapes if all(key in other.shapes for _, other in others)]
    if not keys:
        raise ValueError(f"tickets of different models: {', '.join(tickets)} have no matrix in common")
    return keys


def _left_out(tickets: Mapping[str, PackedMasks], keys: Sequence[str]) -> str:
    """Return one line on the matrices that are not compared."""
    extra = {
        name: [key for key in masks.shapes if key not in set(keys)]
        for name, masks in tickets.items()
        if len(masks.shapes) > len(keys)
    }
    if not extra:
        return ""
    parts = [f"{name} also has {_named(missing)}" for name, missing in extra.items()]
    return f"Compared on the matrices that all tickets have ({len(keys)}): {'; '.join(parts)}."


def _named(keys: Iterable[str]) -> str:
    first, *others = keys
    return f"{first} and {len(others)} more" if others else first


def _count(bits: np.ndarray) -> int:
    return int(np.bitwise_count(bits).sum(dtype=np.int64))
