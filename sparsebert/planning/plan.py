"""What a plan says: the format of each layer, the times it is expected to take, and why."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass
from typing import Any

from sparsebert.cost.work import format_label, format_options


@dataclass(frozen=True)
class LayerPlan:
    """The choice for one layer. Times are microseconds for ``tokens`` rows of x, sizes are bytes.

    predicted_us  of the chosen format by the cost model; None where it has no figures for it
    measured_us   of the chosen format, on the densest layer of this kind; None without a measurement
    dense_us      of a prepacked dense layer, measured where that was done, else predicted; where compaction
                  took something out of it, of the layer as it was before, in proportion to its weights
    nbytes        of the packed weight; an estimate within a few percent until the layer is converted
    dense_nbytes  of the dense layer as it was before anything was taken out of it
    block         (rows, columns) of the vectors or blocks, where the format has them
    removed       what compaction took out of the layer, for people; ``shape`` is that of what is left
    busy          other programs had the machine while it was measured: times and choice may be wrong
    """

    key: str
    shape: tuple[int, int]
    sparsity: float
    format: str
    predicted_us: float | None
    measured_us: float | None
    dense_us: float | None
    nbytes: int
    dense_nbytes: int
    reason: str
    tokens: int
    block: tuple[int, int] | None = None
    removed: str = ""
    busy: bool = False

    @property
    def options(self) -> dict[str, Any]:
        """Options for `SparseLinear`."""
        if self.format in ("dense", "compact"):
            return {"tokens": self.tokens}
        return format_options(self.format, self.block)

    @property
    def label(self) -> str:
        """The format for people to read."""
        return format_label(self.format, self.block)


@dataclass(frozen=True)
class Plan:
    """The choices for a model, in the order of its layers; prints as a table.

    ``machine`` names what the times hold for: instruction set, threads and where the costs come from.
    ``removal`` says in a line what compaction takes out of the model, or why it takes nothing.
    """

    layers: tuple[LayerPlan, ...]
    machine: str
    removal: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)

    @property
    def summary(self) -> str:
        """One line: formats, bytes and times in all."""
        counts = Counter(layer.label for layer in self.layers)
        chosen = ", ".join(f"{count} {label}" for label, count in counts.most_common())
        held, dense = (
            sum(getattr(layer, name) for layer in self.layers) for name in ("nbytes", "dense_nbytes")
        )
        line = f"{chosen}; {held / 2**20:.1f} MiB of {dense / 2**20:.1f} MiB dense ({held / dense:.2f}x)"
        if empty := sum(layer.sparsity == 1 for layer in self.layers):
            line += f"; {empty} layers keep nothing"
        times = [(_time(layer), layer.dense_us) for layer in self.layers]
        if all(own and dense_us for own, dense_us in times):
            own, dense_us = (sum(column) / 1e3 for column in zip(*times, strict=True))
            line += f"; {own:.2f} ms instead of {dense_us:.2f} ms dense ({dense_us / own:.1f}x)"
        return line

    def __str__(self) -> str:
        rows = self._rows()
        numeric_columns = _numeric(rows[0])
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        table = [
            "  ".join(
                cell.rjust(width) if numeric else cell.ljust(width)
                for cell, width, numeric in zip(row, widths, numeric_columns, strict=True)
            ).rstrip()
            for row in rows
        ]
        return "\n".join([*table, *self._captions()])

    def _captions(self) -> list[str]:
        count = sum(layer.busy for layer in self.layers)
        doubt = (
            f"{count} of {len(self.layers)} layers timed while the machine was busy: figures marked ?, "
            "and what was chosen by them, may be wrong"
        )
        return [line for line in (self.summary, self.removal, doubt if count else "", self.machine) if line]

    def _rows(self) -> list[tuple[str, ...]]:
        """Header and cells; what was removed has a column where something was."""
        rows = [_HEADER, *(_cells(layer) for layer in self.layers)]
        if any(layer.removed for layer in self.layers):
            removed = ["removed", *(layer.removed for layer in self.layers)]
            rows = [(*row[:2], cell, *row[2:]) for row, cell in zip(rows, removed, strict=True)]
        return rows

    def __rich__(self) -> Any:
        from rich.table import Table

        header, *rows = self._rows()
        table = Table(caption="\n".join(self._captions()))
        for name, numeric in zip(header, _numeric(header), strict=True):
            table.add_column(name, justify="right" if numeric else "left")
        for row in rows:
            table.add_row(*row)
        return table


_HEADER = (
    "layer", "shape", "sparsity", "format", "predicted", "measured", "dense", "KiB", "of dense", "reason",
)  # fmt: skip
_TEXT = ("layer", "removed", "format", "reason")


def _numeric(header: tuple[str, ...]) -> list[bool]:
    return [name not in _TEXT for name in header]


def _time(layer: LayerPlan) -> float | None:
    return layer.measured_us or layer.predicted_us


def _cells(layer: LayerPlan) -> tuple[str, ...]:
    def micro(value: float | None, doubt: str = "") -> str:
        return "-" if value is None else f"{value:.0f} us{doubt}"

    doubt = "?" if layer.busy else ""

    return (
        layer.key,
        "x".join(map(str, layer.shape)),
        f"{layer.sparsity:.1%}",
        layer.label,
        micro(layer.predicted_us),
        micro(layer.measured_us, doubt),
        micro(layer.dense_us, doubt),
        f"{layer.nbytes / 1024:.0f}",
        f"{layer.nbytes / layer.dense_nbytes:.2f}x",
        layer.reason,
    )
