"""What a packed format would cost a layer: work counted from the mask, time from a linear model."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sparsebert_kernels.formats import element, vector

VECTOR_ROWS = (8, 4, 2)


@dataclass(frozen=True)
class MaskStatistics:
    """What decides how fast a mask can run. ``vectors``: V -> number of V x 1 vectors that keep a weight."""

    rows: int
    columns: int
    kept: int
    live_rows: int
    live_columns: int
    vectors: dict[int, int]

    @classmethod
    def of(cls, mask: Tensor) -> MaskStatistics:
        """Count a bool mask [out, in], True = keep."""
        rows, columns = mask.shape
        # Bytes and maxima: reductions over bool are an order of magnitude slower on the CPU.
        folded = torch.nn.functional.pad(mask.view(torch.uint8), (0, 0, 0, -rows % max(VECTOR_ROWS)))
        vectors = {}
        for height in sorted(VECTOR_ROWS):
            folded = folded[0::2] | folded[1::2]
            vectors[height] = int(torch.count_nonzero(folded))
        return cls(
            rows=rows,
            columns=columns,
            kept=int(torch.count_nonzero(mask)),
            live_rows=int(mask.view(torch.uint8).amax(1).sum()),
            live_columns=int(folded.amax(0).sum()),
            vectors=vectors,
        )

    @property
    def sparsity(self) -> float:
        return 1 - self.kept / (self.rows * self.columns)

    @property
    def full(self) -> bool:
        """Whether nothing is pruned."""
        return self.kept == self.rows * self.columns

    @property
    def has_dead_lines(self) -> bool:
        """Whether a whole row or column is pruned."""
        return self.live_rows < self.rows or self.live_columns < self.columns

    def aligned(self, height: int) -> bool:
        """Whether the mask consists of whole vectors of that height."""
        return self.rows % height == 0 and self.vectors[height] * height == self.kept


@dataclass(frozen=True)
class Work:
    """What running a layer in one format takes.

    stored   multiply-adds a token
    lines    features read and written a token
    nbytes   bytes of the packed weight, to within a few percent
    """

    format: str
    stored: int
    lines: int
    nbytes: int
    vector_rows: int | None = None

    @property
    def kind(self) -> str:
        """The format with its vector height: what is calibrated on its own."""
        return self.format if self.vector_rows is None else f"{self.format}{self.vector_rows}"

    @property
    def options(self) -> dict[str, Any]:
        """Options for `sparsebert_kernels.formats.pack`."""
        return {} if self.vector_rows is None else {"vector_rows": self.vector_rows}


def works(mask: MaskStatistics, dtype: torch.dtype, formats: Iterable[str]) -> Iterator[Work]:
    """The work of each of ``formats`` with values of ``dtype``; "vector" once for every height."""
    rows, columns, item = mask.rows, mask.columns, dtype.itemsize
    for format in formats:
        match format:
            case "element":
                blocks = -(-rows // element.BLOCK_ROWS) * -(-columns // element.BLOCK_COLUMNS)
                padding = blocks * min(rows, element.BLOCK_ROWS) // 2 if dtype == torch.bfloat16 else 0
                stored = mask.kept + padding
                listed = min(mask.kept, rows * -(-columns // element.BLOCK_COLUMNS))
                yield Work(format, stored, rows + columns, stored * (item + 1) + 2 * listed + 200 * blocks)
            case "vector":
                blocks = -(-columns // vector.BLOCK_COLUMNS)
                padded = -(-rows // vector.BLOCK_ROWS) * vector.BLOCK_ROWS
                for height in VECTOR_ROWS:
                    vectors = mask.vectors[height]
                    nbytes = vectors * (height * item + 2) + 4 * blocks * padded // height
                    yield Work(format, vectors * height, rows + columns, nbytes, height)
            case "compact":
                live = mask.live_rows * mask.live_columns
                lines = rows + mask.live_columns
                yield Work(format, live, lines, live * item + 8 * (mask.live_rows + mask.live_columns))
            case "csr":
                yield Work(format, mask.kept, rows + columns, mask.kept * (item + 4) + 4 * (rows + 1))
            case "dense":
                yield Work(format, rows * columns, rows + columns, rows * columns * item)


@dataclass(frozen=True)
class Cost:
    """seconds = fixed + tokens * (per_stored * stored + per_line * lines), all in seconds."""

    fixed: float
    per_stored: float
    per_line: float

    def seconds(self, work: Work, tokens: int) -> float:
        return self.fixed + tokens * (self.per_stored * work.stored + self.per_line * work.lines)
