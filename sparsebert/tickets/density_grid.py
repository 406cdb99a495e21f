"""The densities of a ticket's matrices, by layer and type of matrix."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from sparsebert.bert import BERT, encoder_matrix
from sparsebert.html_table import table_html


@dataclass(frozen=True)
class MatrixCount:
    """The kept weights of one matrix.

    Attributes:
        key: The matrix's key in the ticket.
        layer: Path of its layer; "" for a matrix outside of layers, such as the pooler.
        type: query, key, ..., or the path below the layer in other models.
        rows, columns: Shape [out, in].
        kept: Number of kept weights.
        live_rows, live_columns: Rows and columns that keep a weight.
    """

    key: str
    layer: str
    type: str
    rows: int
    columns: int
    kept: int
    live_rows: int
    live_columns: int

    @property
    def weights(self) -> int:
        """Number of weights."""
        return self.rows * self.columns

    @classmethod
    def of(cls, key: str, mask: Tensor) -> MatrixCount:
        """Count a bool mask [out, in], True = keep."""
        array = mask.numpy()
        layer, kind = _place(key)
        return cls(
            key=key,
            layer=layer,
            type=kind,
            rows=array.shape[0],
            columns=array.shape[1],
            kept=int(np.count_nonzero(array)),
            live_rows=int(array.any(axis=1).sum()),
            live_columns=int(array.any(axis=0).sum()),
        )


@dataclass(frozen=True)
class DensityGrid:
    """Kept weights and weights by layer and type of matrix.

    Attributes:
        layers: Paths of the layers, in model order.
        types: Types of matrices.
        kept, weights: int64 [layers, types]; 0 weights where a layer has no such matrix.
        others: Matrices outside of layers.
    """

    layers: tuple[str, ...]
    types: tuple[str, ...]
    kept: np.ndarray
    weights: np.ndarray
    others: tuple[MatrixCount, ...]

    @classmethod
    def of(cls, matrices: Iterable[MatrixCount]) -> DensityGrid:
        """Arrange the matrices of a ticket."""
        matrices = list(matrices)
        inside = [each for each in matrices if each.layer]
        layers = tuple(dict.fromkeys(each.layer for each in inside))
        types = tuple(dict.fromkeys(each.type for each in inside))
        kept, weights = np.zeros((2, len(layers), len(types)), np.int64)
        for each in inside:
            place = layers.index(each.layer), types.index(each.type)
            kept[place] += each.kept
            weights[place] += each.weights
        return cls(layers, types, kept, weights, tuple(each for each in matrices if not each.layer))

    @property
    def density(self) -> np.ndarray:
        """float64 [layers, types], NaN where a layer has no such matrix."""
        return shares(self.kept, self.weights)

    @property
    def by_layer(self) -> np.ndarray:
        """float64 [layers]: density of each layer."""
        return shares(self.kept.sum(1), self.weights.sum(1))

    @property
    def by_type(self) -> np.ndarray:
        """float64 [types]: density of each type of matrix."""
        return shares(self.kept.sum(0), self.weights.sum(0))


def density_cells(
    grid: DensityGrid,
) -> tuple[tuple[str, ...], list[tuple[str, ...]], list[list[float | None]]]:
    """Return columns, rows and shares of a table: a row for each layer, a column for each type of matrix.

    Cells are in per cent; the shares of all cells but the first, None for empty ones, are from 0 to 1.
    """
    inside: list[tuple[str, np.ndarray]] = [
        (name, np.append(density, of_layer))
        for name, density, of_layer in zip(layer_names(grid.layers), grid.density, grid.by_layer, strict=True)
    ]
    if len(inside) > 1:
        inside.append(("all", np.append(grid.by_type, grid.kept.sum() / grid.weights.sum())))
    blank = [np.nan] * len(grid.types)
    inside += [(each.type, np.array([*blank, each.kept / each.weights])) for each in grid.others]
    rows = [(name, *map(percent, values)) for name, values in inside]
    shaded = [[None if np.isnan(value) else float(value) for value in values] for _, values in inside]
    return ("layer", *grid.types, "all"), rows, shaded


def ticket_html(
    title: str, matrices: Iterable[MatrixCount], metadata: Mapping[str, Any], removed: Sequence[str]
) -> str:
    """Return the densities of a ticket as HTML for a notebook."""
    columns, rows, shaded = density_cells(DensityGrid.of(matrices))
    model = (metadata.get("model") or {}).get("id")
    notes = ["Density: kept weights in per cent of all."]
    notes += [f"Model: {model}."] if model else []
    notes += [f"Removed modules: {', '.join(removed)}."] if removed else []
    return table_html(title, columns, rows, notes, shades=shaded)


def percent(share: float | None) -> str:
    """Return a share in per cent, with two decimals below 1 %; "0" for nothing at all, "-" for no figure."""
    if share is None or np.isnan(share):
        return "-"
    if share == 0:
        return "0"
    return f"{100 * share:.2f}" if share < 0.01 else f"{100 * share:.1f}"


def layer_names(layers: Sequence[str]) -> list[str]:
    """Return the numbers of layers of one stack, counted from 0 as in their paths; else the paths."""
    stacks = {layer.rpartition(".")[0] for layer in layers}
    return [layer.rpartition(".")[2] for layer in layers] if len(stacks) == 1 else list(layers)


def shares(kept: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Return kept / weights, NaN where there are no weights."""
    return np.where(weights > 0, kept / np.maximum(weights, 1), np.nan)


def _place(key: str) -> tuple[str, str]:
    """Return layer and type of a matrix; outside of layers, "" and its key."""
    if named := encoder_matrix(key):
        return named
    if key == BERT.pooler:
        return "", "pooler"
    numbered = re.fullmatch(r"((?:.*?\.)?\d+)\.(.+)", key)
    return (numbered[1], numbered[2]) if numbered else ("", key)
