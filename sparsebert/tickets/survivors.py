"""Which heads and MLPs survive in tickets of several seeds or tasks (Prasanna et al., EMNLP 2020).

Their figures count, for each head and MLP, the tickets in which it survives structured pruning; for magnitude
pruning they give mean and standard deviation of the share of its surviving weights.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from sparsebert.tickets.density_grid import shares
from sparsebert.tickets.kept_weights import MLP_TYPES, KeptWeights


@dataclass(frozen=True, eq=False)
class Survivors:
    """Heads and MLPs of several tickets of one model.

    Attributes:
        tickets: Number of tickets.
        layers: Paths of the layers.
        heads: int64 [layers, heads]: tickets in which the head survives (``HeadCounts.survives``).
        head_density: float64 [layers, heads]: mean share of kept weights of a head.
        head_std: The standard deviation (n - 1) over the tickets.
        mlps: int64 [layers]: tickets in which the MLP survives.
        mlp_density, mlp_std: float64 [layers], as of heads; NaN for a layer whose MLP has no mask.
    """

    tickets: int
    layers: tuple[str, ...]
    heads: np.ndarray
    head_density: np.ndarray
    head_std: np.ndarray
    mlps: np.ndarray
    mlp_density: np.ndarray
    mlp_std: np.ndarray

    @classmethod
    def of(cls, tickets: Sequence[KeptWeights]) -> Survivors | None:
        """Count tickets of one model; None unless each counts heads of the same layers.

        Raises:
            ValueError: There are fewer than two tickets.
        """
        if len(tickets) < 2:
            raise ValueError(f"survivors need at least two tickets, got {len(tickets)}")
        counts = [each.heads for each in tickets]
        heads = [each for each in counts if each is not None]
        if len(heads) < len(counts) or len({(each.layers, each.heads) for each in heads}) > 1:
            return None
        layers = heads[0].layers
        of_heads = np.stack([each.density() for each in heads])
        of_mlps = np.stack([_mlp_density(each, layers) for each in tickets])
        alive = np.array(
            [[each.mlps_survive().get(layer, True) for layer in layers] for each in tickets], bool
        )
        return cls(
            tickets=len(tickets),
            layers=layers,
            heads=np.stack([each.survives for each in heads]).sum(axis=0),
            head_density=of_heads.mean(axis=0),
            head_std=of_heads.std(axis=0, ddof=1),
            mlps=alive.sum(axis=0),
            mlp_density=of_mlps.mean(axis=0),
            mlp_std=of_mlps.std(axis=0, ddof=1),
        )

    @property
    def all_survive(self) -> bool:
        """Whether every ticket keeps a part of every head and MLP, so that only densities differ."""
        return bool((self.heads == self.tickets).all() and (self.mlps == self.tickets).all())

    def record(self) -> dict[str, Any]:
        """Return plain values for JSON; null for NaN."""
        return {
            "layers": list(self.layers),
            "heads": self.heads.tolist(),
            "head_density": self.head_density.tolist(),
            "head_std": self.head_std.tolist(),
            "mlps": self.mlps.tolist(),
            "mlp_density": _plain(self.mlp_density),
            "mlp_std": _plain(self.mlp_std),
        }

    @classmethod
    def of_record(cls, record: Mapping[str, Any]) -> Survivors:
        """Return the survivors of a ``record``; ``names`` gives the number of tickets."""
        floats = ("head_density", "head_std", "mlp_density", "mlp_std")
        return cls(
            tickets=len(record["names"]),
            layers=tuple(record["layers"]),
            heads=np.array(record["heads"]),
            mlps=np.array(record["mlps"]),
            **{name: np.array(record[name], float) for name in floats},
        )


def _mlp_density(ticket: KeptWeights, layers: Sequence[str]) -> np.ndarray:
    kept, weights = np.zeros((2, len(layers)), np.int64)
    for each in ticket.matrices:
        if each.type in MLP_TYPES and each.layer in layers:
            kept[layers.index(each.layer)] += each.kept
            weights[layers.index(each.layer)] += each.weights
    return shares(kept, weights)


def _plain(values: np.ndarray) -> list[float | None]:
    return [None if np.isnan(value) else float(value) for value in values]
