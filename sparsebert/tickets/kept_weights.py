"""Where a ticket's weights stay: counts of kept weights by matrix, by head and by block of a matrix.

Static Model Pruning (Jiang et al., ACL 2023) shows the share of remaining weights by layer and matrix (its
Figure 2) and by head of query and value (its Figure 3); its section 6.3 gives the standard deviation of that
share over the heads.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from sparsebert.bert import encoder_matrix
from sparsebert.tickets.density_grid import DensityGrid, MatrixCount

if TYPE_CHECKING:
    from sparsebert.tickets.ticket import Ticket

# Matrices whose rows (output: columns) are divided among the heads, and those of an MLP.
HEAD_TYPES = ("query", "key", "value", "attention_output")
MLP_TYPES = ("ffn_up", "ffn_down")
# Blocks along the longest side of a model's matrices, in a picture of its masks.
CELLS = 64


@dataclass(frozen=True)
class HeadCounts:
    """The kept weights of each attention head.

    Attributes:
        layers: Paths of the layers.
        heads: Heads of a layer.
        weights: Type of a matrix -> weights of one head in it.
        kept: Type of a matrix -> kept weights of each head [layers][heads]; None for a layer without a mask
            of this type.
    """

    layers: tuple[str, ...]
    heads: int
    weights: dict[str, int]
    kept: dict[str, tuple[tuple[int, ...] | None, ...]]

    @classmethod
    def of(cls, masks: Mapping[str, Tensor], heads: int) -> HeadCounts | None:
        """Count the masks of a BERT-like model; None if no attention matrix is among them.

        Raises:
            ValueError: The number of heads does not divide the rows of a matrix.
        """
        counts: dict[tuple[str, str], tuple[int, ...]] = {}
        weights: dict[str, int] = {}
        for key, mask in masks.items():
            place = encoder_matrix(key)
            if place is None or place[1] not in HEAD_TYPES:
                continue
            # Of the output, a head has columns.
            array = mask.numpy().T if place[1] == "attention_output" else mask.numpy()
            if heads < 1 or len(array) % heads:
                raise ValueError(f"{heads} heads do not divide the {len(array)} rows of heads in {key}")
            by_row = np.count_nonzero(array, axis=1)
            counts[place] = tuple(map(int, by_row.reshape(heads, -1).sum(axis=1)))
            weights[place[1]] = array.size // heads
        if not counts:
            return None
        layers = tuple(dict.fromkeys(layer for layer, _ in counts))
        kept = {
            kind: tuple(counts.get((layer, kind)) for layer in layers)
            for kind in HEAD_TYPES
            if kind in weights
        }
        return cls(layers, heads, weights, kept)

    @classmethod
    def of_record(cls, record: Mapping[str, Any]) -> HeadCounts:
        """Return the counts of a record of :class:`KeptWeights`."""
        kept = {
            kind: tuple(None if row is None else tuple(row) for row in rows)
            for kind, rows in record["kept"].items()
        }
        return cls(tuple(record["layers"]), record["heads"], dict(record["weights"]), kept)

    def density(self, kind: str | None = None) -> np.ndarray:
        """Return the kept share of each head.

        Args:
            kind: Type of the matrix; None for all of a head's matrices together.

        Returns:
            float64 [layers, heads], NaN where no mask is.
        """
        kinds = list(self.kept) if kind is None else [kind]
        kept = np.zeros((len(self.layers), self.heads))
        weights = np.zeros((len(self.layers), 1))
        for each in kinds:
            for number, row in enumerate(self.kept[each]):
                if row is not None:
                    kept[number] += row
                    weights[number] += self.weights[each]
        with np.errstate(invalid="ignore"):
            return np.where(weights > 0, kept / np.maximum(weights, 1), np.nan)

    @property
    def survives(self) -> np.ndarray:
        """bool [layers, heads]: whether the head keeps a weight in both its value rows and output columns.

        A head without one computes a constant, and compaction removes it. A matrix without a mask is whole.
        """
        alive = np.ones((len(self.layers), self.heads), bool)
        for kind in ("value", "attention_output"):
            for number, row in enumerate(self.kept.get(kind, ())):
                if row is not None:
                    alive[number] &= np.array(row) > 0
        return alive


@dataclass(frozen=True)
class KeptWeights:
    """The kept weights of a ticket.

    Attributes:
        matrices: One entry a matrix, in the order of the ticket.
        heads: By head; None if the number of heads is unknown or the ticket has no attention matrix.
        block: Rows and columns of a block.
        blocks: Key -> kept weights of each block, int64 [ceil(out / block), ceil(in / block)].
    """

    matrices: tuple[MatrixCount, ...]
    heads: HeadCounts | None
    block: int
    blocks: dict[str, np.ndarray]

    @classmethod
    def of(cls, ticket: Ticket, heads: int | None = None, cells: int = CELLS) -> KeptWeights:
        """Count the kept weights of a ticket.

        Args:
            ticket: The ticket.
            heads: Attention heads of a layer; None for the number in the ticket's metadata, if it has one.
            cells: Largest number of blocks along the longest side of the matrices.

        Raises:
            ValueError: As :meth:`HeadCounts.of`.
        """
        if heads is None:
            heads = (ticket.metadata.get("model") or {}).get("heads")
        size = _block_size(max((max(mask.shape) for mask in ticket.masks.values()), default=1), cells)
        return cls(
            matrices=tuple(MatrixCount.of(key, mask) for key, mask in ticket.masks.items()),
            heads=None if heads is None else HeadCounts.of(ticket.masks, heads),
            block=size,
            blocks={key: block_counts(mask, size) for key, mask in ticket.masks.items()},
        )

    @property
    def grid(self) -> DensityGrid:
        """By layer and type of matrix."""
        return DensityGrid.of(self.matrices)

    def mlps_survive(self) -> dict[str, bool]:
        """Return whether each layer's MLP keeps a weight in all of its masked matrices, by layer."""
        alive: dict[str, bool] = {}
        for each in self.matrices:
            if each.type in MLP_TYPES:
                alive[each.layer] = alive.get(each.layer, True) and each.kept > 0
        return alive

    def record(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return {
            "matrices": [asdict(each) for each in self.matrices],
            "heads": None if self.heads is None else asdict(self.heads),
            "block": self.block,
            "blocks": {key: counts.tolist() for key, counts in self.blocks.items()},
        }

    @classmethod
    def of_record(cls, record: Mapping[str, Any]) -> KeptWeights:
        """Return the counts of a ``record``."""
        heads = record["heads"]
        return cls(
            matrices=tuple(MatrixCount(**each) for each in record["matrices"]),
            heads=None if heads is None else HeadCounts.of_record(heads),
            block=record["block"],
            blocks={key: np.array(counts, np.int64) for key, counts in record["blocks"].items()},
        )


def block_counts(mask: Tensor, size: int) -> np.ndarray:
    """Count the kept weights of a mask [out, in] in square blocks; those at the edges may be smaller.

    Returns:
        int64 [ceil(out / size), ceil(in / size)].
    """
    rows, columns = mask.shape
    padded = np.pad(mask.numpy().view(np.uint8), ((0, -rows % size), (0, -columns % size)))
    by_rows = padded.reshape(-1, size, padded.shape[1]).sum(axis=1, dtype=np.int32)
    return by_rows.reshape(len(by_rows), -1, size).sum(axis=2, dtype=np.int64)


def _block_size(longest: int, cells: int) -> int:
    """Return the smallest power of two that cuts the longest side into at most ``cells`` blocks.

    Head sizes are powers of two in most models, so that blocks keep to the bounds of heads.
    """
    size = 1
    while -(-longest // size) > cells:
        size *= 2
    return size
