"""The constants of `compact_`, measured: `python -m benchmarks.compaction_constants`.

Measures the cost of picking columns and placing rows beside a product
(`sparsebert.compaction.live_rectangle`), and the number of padding dimensions that justify another group of
heads (`sparsebert.compaction.heads`), in fp32 on one thread. Sides take turns and are timed in CPU time of
the thread, so other work on the machine has little effect.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from types import SimpleNamespace

import torch
from torch import nn
from torch.nn import functional as F

from benchmarks.output import show
from sparsebert.compaction.heads import DIMENSIONS_OF_A_GROUP, HeadGroup, total
from sparsebert.compaction.live_rectangle import PICKED, PLACED, RectangleLinear
from sparsebert.compaction.narrow_attention import NarrowAttention
from sparsebert.report.table import Table

SHAPES = ((384, 384), (768, 768), (3072, 768), (768, 3072))
BATCHES = ((1, 32), (1, 128), (8, 32), (8, 128))
HEADS = 12


def medians(sides: Sequence[Callable[[], object]], seconds: float) -> list[float]:
    """Return the median CPU seconds of each side, called in turn for ``seconds``."""
    times: list[list[float]] = [[] for _ in sides]
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(times[0]) < 3:
        for side, taken in zip(sides, times, strict=True):
            start = time.thread_time()
            side()
            taken.append(time.thread_time() - start)
    return [statistics.median(taken[1:]) for taken in times]


def rectangle(rows: int, columns: int, live_rows: int, live_columns: int) -> RectangleLinear:
    """Return a layer of random weights with dead rows and columns at random places."""
    weight, bias = nn.Parameter(torch.randn(live_rows, live_columns)), nn.Parameter(torch.randn(rows))
    layer = RectangleLinear(columns, rows, weight, bias)
    layer.rows.copy_(torch.randperm(rows)[:live_rows].sort().values)
    layer.columns.copy_(torch.randperm(columns)[:live_columns].sort().values)
    return layer


def copying(rows: int, columns: int, tokens: int, seconds: float) -> tuple[float, float]:
    """Return the cost of a picked column and of a placed row per token, in weights of the product."""
    x = torch.randn(tokens, columns)
    few_rows, few_columns = rows * 3 // 4, columns * 3 // 4
    picking, placing = (
        rectangle(rows, columns, rows, few_columns),
        rectangle(rows, columns, few_rows, columns),
    )
    picked = x[:, :few_columns].contiguous()
    dense = torch.randn(rows, columns)
    whole, of_columns, product_of_columns, of_rows, product_of_rows = medians(
        [
            lambda: F.linear(x, dense, placing.bias),
            lambda: picking(x),
            lambda: F.linear(picked, picking.weight, picking.bias),
            lambda: placing(x),
            lambda: F.linear(x, placing.weight, placing.bias[:few_rows]),
        ],
        seconds,
    )
    weight = whole / (rows * columns)
    return (of_columns - product_of_columns) / weight / few_columns, (
        of_rows - product_of_rows
    ) / weight / rows


def attention(hidden: int, groups: Sequence[HeadGroup]) -> nn.Module:
    """Return a BERT self-attention with its output projection, whose heads run in these groups."""
    module = nn.Module()
    widths = {"query": "score", "key": "score", "value": "value"}
    for name, kind in widths.items():
        setattr(module, name, nn.Linear(hidden, total(groups, kind)))
    module.out = nn.Linear(total(groups, "value"), hidden)
    module.dropout = nn.Dropout(0.0)
    module.config = SimpleNamespace(_attn_implementation="sdpa")
    return NarrowAttention(module, groups, 1.0, (*widths, "out")).eval()


def splitting(hidden: int, batch: int, length: int, dimensions: int, seconds: float) -> float:
    """Return the speed of two groups of heads relative to one group padded to the widest head.

    Two heads are narrower, which saves ``dimensions`` in query and key and in value.
    """
    size, less = hidden // HEADS, dimensions // 4
    one = attention(hidden, [HeadGroup(tuple(range(HEADS)), size, size)])
    narrow, wide = HeadGroup((0, 1), size - less, size - less), HeadGroup(tuple(range(2, HEADS)), size, size)
    two = attention(hidden, [narrow, wide])
    x = torch.randn(batch, length, hidden)
    padded, split = medians([lambda: one(x), lambda: two(x)], seconds)
    return padded / split


def tables(seconds: float) -> list[Table]:
    """Take both measurements, with ``seconds`` for each cell."""
    costs = [
        (
            f"{rows}x{columns}",
            str(tokens),
            *(f"{cost:.0f}" for cost in copying(rows, columns, tokens, seconds)),
        )
        for rows, columns in SHAPES
        for tokens in (128, 1024)
    ]
    dimensions = (DIMENSIONS_OF_A_GROUP // 2, DIMENSIONS_OF_A_GROUP, 2 * DIMENSIONS_OF_A_GROUP)
    speeds = [
        (
            str(hidden),
            f"{batch} x {length}",
            *(f"{splitting(hidden, batch, length, each, seconds):.2f}x" for each in dimensions),
        )
        for hidden in (384, 768)
        for batch, length in BATCHES
    ]
    return [
        Table(
            f"Copies, in weights of the product (assumed: {PICKED} and {PLACED})",
            ("matrix", "tokens", "picked column", "placed row"),
            tuple(costs),
        ),
        Table(
            f"Two groups of heads against one (even at {DIMENSIONS_OF_A_GROUP} dimensions, as assumed)",
            ("hidden", "batch x length", *(f"{each} saved" for each in dimensions)),
            tuple(speeds),
        ),
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seconds", type=float, default=2.0, help="seconds for each cell")
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    with torch.inference_mode():
        show(tables(options.seconds))
    return 0


if __name__ == "__main__":
    sys.exit(main())
