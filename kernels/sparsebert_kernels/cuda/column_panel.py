"""y = activation(x @ W.T + bias) + residual for a weight in column panels.

The columns of a panel are scattered, so single activations of a token would be gathered two bytes at a time,
too short for an asynchronous copy. From x transposed, feature by feature, a column is a run of tokens:
16-byte copies. The result leaves transposed, too, because the rows of a panel are scattered in y; both
transpositions are torch's.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import triton
import triton.language as tl
from torch import Tensor

from ..formats.column_panel import PANEL_ROWS, ColumnPanelSparse
from .compile_case import CompileCase
from .tiles import activate, operand, precision, upcast

FAMILY = "column panel"


@triton.jit
def column_panel_forward(
    x,  # (K, tokens), tokens rounded up to a whole tile
    values,  # (tiles, H, 64)
    columns,  # ((tiles + 1) * 64,) int32
    starts,  # (panels + 1,) int32
    rows,  # (panels * H,) int32
    bias,  # (N,) any floating-point dtype, or None
    y,  # (N, tokens)
    N,
    panels,
    tokens,
    H: tl.constexpr,
    BLOCK_M: tl.constexpr,
    STEP: tl.constexpr,  # columns of one product: 64, or a part of it
    ACTIVATION: tl.constexpr,
    PRECISION: tl.constexpr,
    UPCAST: tl.constexpr,
):
    """y[n, m] = activation(sum over the columns k of n's panel of W[n, k] x[k, m] + bias[n])

    Grid: one program a panel and tile of BLOCK_M tokens, panels fastest.
    """
    WIDTH: tl.constexpr = 64
    panel = tl.program_id(0) % panels
    token = tl.program_id(0) // panels * BLOCK_M + tl.arange(0, BLOCK_M)  # [BLOCK_M]
    begin = tl.load(starts + panel)
    end = tl.load(starts + panel + 1)
    inner, packed = tl.arange(0, H), tl.arange(0, STEP)
    tile = values + begin.to(tl.int64) * (H * WIDTH) + inner[:, None] * WIDTH + packed[None, :]  # [H, STEP]
    # Loaded one tile ahead: with the columns and what they point to in one iteration the compiler gives up
    # double buffering.
    index = columns + begin.to(tl.int64) * WIDTH + packed
    column = tl.load(index)  # [STEP]
    sums = tl.zeros((H, BLOCK_M), tl.float32)
    for _ in range(begin, end):
        for part in tl.static_range(WIDTH // STEP):
            # [STEP, BLOCK_M]
            activations = tl.load(x + column.to(tl.int64)[:, None] * tokens + token[None, :])
            weights = tl.load(tile + part * STEP)
            index += STEP
            column = tl.load(index)
            activations, weights = operand(activations, UPCAST), operand(weights, UPCAST)
            sums = tl.dot(weights, activations, sums, input_precision=PRECISION)
        tile += H * WIDTH
    row = tl.load(rows + panel * H + inner)
    inside = row < N
    if bias is not None:
        sums += tl.load(bias + row, mask=inside, other=0.0).to(tl.float32)[:, None]
    sums = activate(sums, ACTIVATION)
    place = y + row.to(tl.int64)[:, None] * tokens + token[None, :]
    tl.store(place, sums.to(y.dtype.element_ty), mask=inside[:, None])


@dataclass(frozen=True)
class Tile:
    """Tokens a program takes, columns of one product, and how it is compiled."""

    block_m: int
    step: int
    num_warps: int
    num_stages: int


# By bytes a value, then by panel height. Exact float32 products hold their operands in registers: small
# tiles, short steps.
TILES = {
    2: {64: Tile(128, 64, 4, 3), 128: Tile(128, 64, 8, 3)},
    4: {64: Tile(64, 16, 4, 2), 128: Tile(64, 16, 8, 2)},
}


def linear(
    x: Tensor, packed: ColumnPanelSparse, bias: Tensor | None, activation: str, residual: Tensor | None = None
) -> Tensor:
    """``activation(x @ W.T + bias) + residual`` for x [..., in] in the dtype of W."""
    flat = x.reshape(-1, x.shape[-1])
    tile = TILES[x.element_size()][packed.panel_rows]
    blocks = triton.cdiv(flat.shape[0], tile.block_m)
    # Whole tiles, so that no load or store of the kernel needs a mask; nobody reads what the last one adds.
    tokens = blocks * tile.block_m
    transposed, y = x.new_empty(x.shape[-1], tokens), x.new_empty(packed.shape[0], tokens)
    transposed[:, : flat.shape[0]] = flat.t()
    if blocks:
        column_panel_forward[(blocks * packed.panels,)](
            transposed,
            packed.values,
            packed.columns,
            packed.starts,
            packed.rows,
            None if bias is None else bias.contiguous(),
            y,
            packed.shape[0],
            packed.panels,
            tokens,
            H=packed.panel_rows,
            BLOCK_M=tile.block_m,
            STEP=tile.step,
            ACTIVATION=activation,
            PRECISION=precision(),
            UPCAST=upcast(x.dtype),
            num_warps=tile.num_warps,
            num_stages=tile.num_stages,
        )
    out = y[:, : flat.shape[0]].t().contiguous().view(*x.shape[:-1], packed.shape[0])
    return out if residual is None else out + residual


def input_gradient(gradient: Tensor, packed: ColumnPanelSparse, transposed: Sequence[Tensor]) -> Tensor:
    """gradient @ W [..., in] for gradient [..., out] in the dtype of W; through the dense matrix."""
    return gradient @ packed.to_dense()


def compile_cases() -> Iterator[CompileCase]:
    """Every configuration; the default ones are those of bfloat16."""
    for dtype, itemsize in (("bf16", 2), ("fp16", 2), ("fp32", 4), ("tf32", 4)):
        for height in PANEL_ROWS:
            tile = TILES[itemsize][height]
            pointer = "*fp32" if dtype == "tf32" else f"*{dtype}"
            product = height, tile.block_m, tile.step
            arguments = {"x": pointer, "values": pointer, "columns": "*i32", "starts": "*i32", "rows": "*i32"}
            arguments |= {"bias": pointer, "y": pointer, "N": "i32", "panels": "i32", "tokens": "i32"}
            yield CompileCase(
                family=FAMILY,
                label=f"h{height} {'x'.join(map(str, product))} w{tile.num_warps} s{tile.num_stages} {dtype}",
                kernel=column_panel_forward,
                arguments=arguments,
                constants={
                    "H": height,
                    "BLOCK_M": tile.block_m,
                    "STEP": tile.step,
                    "ACTIVATION": "gelu",
                    "PRECISION": "tf32" if dtype == "tf32" else "ieee",
                    "UPCAST": False,
                },
                num_warps=tile.num_warps,
                num_stages=tile.num_stages,
                aligned=("N", "tokens"),
                tile=product,
                default=dtype == "bf16",
            )
