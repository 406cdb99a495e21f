"""The plan: each layer's format, predicted and measured times, and reason; prints as a table."""

from __future__ import annotations

import shutil
import textwrap
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from sparsebert.cost.precision import PRECISIONS
from sparsebert.cost.work import format_label, format_options
from sparsebert.planning.encoder_plan import EncoderPlan


@dataclass(frozen=True)
class LayerPlan:
    """The format of one layer. Times are microseconds for ``tokens`` rows of x, sizes are bytes.

    Attributes:
        key: The layer's key in the ticket.
        shape: (out, in) after compaction.
        sparsity: Share of pruned weights, after compaction.
        format: Name of the packed format.
        predicted_us: Time of the format, predicted by the cost model; None if the model has no figures for
            it.
        measured_us: Time of the format, measured on the densest layer of its timing class; None without a
            measurement.
        dense_us: Time of a prepacked dense layer, measured if the class was timed, else predicted. For a
            compacted layer, the time is scaled to the number of weights before compaction.
        nbytes: Size of the packed weight; until the layer is converted, an estimate within a few percent.
        dense_nbytes: Size of the dense layer before compaction.
        reason: The reason for the format, as text.
        tokens: Rows of x that the times hold for.
        block: (rows, columns) of the vectors or blocks, for formats that have them.
        removal_note: The parts that compaction removes from the layer, as text.
        busy: Whether other programs used the machine during the timing: measured times are doubtful, and the
            cost model decided.
        decided_by: "timing", "cost model", "user" (the format was requested) or "saved plan"; "" if there was
            nothing to decide.
        dtype: The layer's dtype: fp32, bf16, fp16 or fp64; "" if unknown.
        precision: Precision below the dtype in which the layer computes: "bf16" or "int8"; "" for the
            dtype's.
        tolerance: The lowest precision that the caller allowed.
        dense_form: The fastest dense form, which the times of the format are compared with, such as
            "oneDNN bf16"; "" if unknown.
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
    removal_note: str = ""
    busy: bool = False
    decided_by: str = ""
    dtype: str = ""
    precision: str = ""
    tolerance: str = "fp32"
    dense_form: str = ""

    @property
    def options(self) -> dict[str, Any]:
        """Options to pass to ``SparseLinear`` with the format."""
        lower = {"precision": self.precision} if self.precision else {}
        if self.format in ("dense", "compact"):
            return {"tokens": self.tokens, **lower}
        return {**format_options(self.format, self.block), **lower}

    @property
    def label(self) -> str:
        """The format with its block size and a lower precision, as text."""
        return format_label(self.format, self.block, self.precision)


@dataclass(frozen=True)
class Plan:
    """The formats of a model's layers, in the order of the layers; prints as a table.

    Attributes:
        layers: One entry a layer.
        machine: The conditions of the times: instruction set, threads and source of the costs.
        removal_note: One line on the weights that compaction removes, or on the reason why it removes none.
        encoder: How the whole encoder runs; None for a model without an encoder of a known family.
        heading: The first line, which names the tokens of a plan for a GPU; "" for a CPU.
    """

    layers: tuple[LayerPlan, ...]
    machine: str
    removal_note: str = ""
    encoder: EncoderPlan | None = None
    heading: str = ""

    @property
    def tolerance(self) -> str:
        """The lowest precision that the layers were allowed."""
        return max((layer.tolerance for layer in self.layers), key=PRECISIONS.index, default="fp32")

    @property
    def way(self) -> str:
        """The way in which the encoder runs; "" for a model without an encoder of a known family."""
        return self.encoder.way if self.encoder else ""

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return asdict(self)

    @property
    def summary(self) -> str:
        """One line: formats, bytes, times, and what decided the formats."""
        if not self.layers:
            return "no layers"
        counts = Counter(layer.label for layer in self.layers)
        formats = ", ".join(f"{count} {label}" for label, count in counts.most_common())
        packed, dense = (
            sum(getattr(layer, name) for layer in self.layers) for name in ("nbytes", "dense_nbytes")
        )
        line = f"{formats}; {packed / 2**20:.1f} MiB of {dense / 2**20:.1f} MiB dense ({packed / dense:.2f}x)"
        if empty := sum(layer.sparsity == 1 for layer in self.layers):
            line += f"; {empty} layers keep nothing"
        times = [(_time(layer), layer.dense_us) for layer in self.layers]
        if all(planned_us and dense_us for planned_us, dense_us in times):
            planned_ms, dense_ms = (sum(column) / 1e3 for column in zip(*times, strict=True))
            line += f"; {planned_ms:.2f} ms instead of {dense_ms:.2f} ms dense ({dense_ms / planned_ms:.1f}x)"
        deciders = Counter(layer.decided_by for layer in self.layers if layer.decided_by)
        if deciders:
            line += "; decided by " + ", ".join(f"{name} ({count})" for name, count in deciders.most_common())
        return line

    def __str__(self) -> str:
        # The width of a terminal, or COLUMNS; a file may be as wide as it needs.
        return self.text(shutil.get_terminal_size((_UNLIMITED, 24)).columns)

    def text(self, width: int) -> str:
        """Return the table if it fits into ``width`` characters, else a few lines for each layer."""
        table = self._table()
        if max(map(len, table)) > width:
            table = self._stacked(width)
        headings = _wrapped(self.heading, width) if self.heading else []
        captions = (line for each in self._captions() for line in _wrapped(each, width))
        return "\n".join([*headings, *table, *captions])

    def _table(self) -> list[str]:
        rows = self._rows()
        numeric_columns = _numeric(rows[0])
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        return [
            "  ".join(
                cell.rjust(width) if numeric else cell.ljust(width)
                for cell, width, numeric in zip(row, widths, numeric_columns, strict=True)
            ).rstrip()
            for row in rows
        ]

    def _stacked(self, width: int) -> list[str]:
        """Return the key of each layer, its figures below each other, and its reasons."""
        header, *rows = self._rows()
        figures = [index for index, name in enumerate(header) if name not in ("layer", "removed", "reason")]
        widths = [max(len(row[index]) for row in (header, *rows)) for index in figures]
        lines = []
        for row in (header, *rows):
            cells = (row[index].rjust(size) for index, size in zip(figures, widths, strict=True))
            removed = row[2:3] if "removed" in header else ()
            words = "; ".join(text for text in (*removed, row[-1]) if text)
            for text in (row[0], " ".join(cells), words):
                lines += _wrapped(text, width, "" if text is row[0] else "  ")
        return lines

    def _captions(self) -> list[str]:
        count = sum(layer.busy for layer in self.layers)
        doubt = (
            f"{count} of {len(self.layers)} layers timed while the machine was busy: the cost model decided, "
            "figures marked ? are doubtful; sparsebert.replan_(model) decides again"
        )
        forms = sorted({layer.dense_form for layer in self.layers if layer.dense_form})
        dense = f"dense: {' or '.join(forms)}, the fastest for each layer" if self._lowered else ""
        encoder = f"encoder: {self.encoder}" if self.encoder else ""
        lines = (self.summary, dense, encoder, self.removal_note, doubt if count else "", self.machine)
        return [line for line in lines if line]

    @property
    def _lowered(self) -> bool:
        """Whether layers were allowed to compute in a lower precision than their own."""
        return self.tolerance != "fp32"

    def _rows(self) -> list[tuple[str, ...]]:
        """Header and cells, with columns of precisions and of removal notes where there are any."""
        rows = [_HEADER, *(_cells(layer) for layer in self.layers)]
        if self._lowered:
            precisions = ["precision", *(layer.precision or layer.dtype or "-" for layer in self.layers)]
            rows = [(*row[:4], cell, *row[4:]) for row, cell in zip(rows, precisions, strict=True)]
        if any(layer.removal_note for layer in self.layers):
            notes = ["removed", *(layer.removal_note for layer in self.layers)]
            rows = [(*row[:2], note, *row[2:]) for row, note in zip(rows, notes, strict=True)]
        return rows

    def __rich_console__(self, console: Any, options: Any) -> Iterator[Any]:
        from rich.table import Table
        from rich.text import Text

        header, *rows = self._rows()
        table = Table(title=self.heading or None, caption="\n".join(self._captions()))
        for name, numeric in zip(header, _numeric(header), strict=True):
            table.add_column(name, justify="right" if numeric else "left")
        for row in rows:
            table.add_row(*row)
        whole = console.measure(table, options=options.update(max_width=_UNLIMITED)).maximum
        fits = whole <= options.max_width
        yield table if fits else Text(self.text(options.max_width))


def _wrapped(text: str, width: int, indent: str = "") -> list[str]:
    """Return the lines of a text; a line that fits keeps its spaces, others are split at spaces."""
    if len(indent) + len(text) <= width:
        return [indent + text]
    return textwrap.wrap(text, max(width, _LEAST), initial_indent=indent, subsequent_indent=indent + "  ")


# Columns of a file, and the fewest columns of a terminal.
_UNLIMITED, _LEAST = 10_000, 20


_HEADER = (
    "layer", "shape", "sparsity", "format", "predicted", "measured", "dense", "KiB", "of dense", "reason",
)  # fmt: skip
_TEXT = ("layer", "removed", "format", "precision", "reason")


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
        format_label(layer.format, layer.block),
        micro(layer.predicted_us),
        micro(layer.measured_us, doubt),
        micro(layer.dense_us, doubt),
        f"{layer.nbytes / 1024:.0f}",
        f"{layer.nbytes / layer.dense_nbytes:.2f}x",
        layer.reason,
    )
