"""y = activation(x @ W.T + bias) + residual for a weight in column panels.

The columns of a panel are scattered: gathering the activations of one token would copy two bytes at a time,
too few for an asynchronous copy. In x transposed, a column is a run of tokens, which 16-byte copies load. The
kernel writes y transposed as well, because the rows of a panel are scattered in y. torch makes both
transpositions.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..formats.base import TILE_COLUMNS
from ..formats.column_panel import PANEL_ROWS, ColumnPanelSparse
from .aot.compile_case import PRODUCTS, CompileCase, example, recorded_case
from .device_functions import WIDTH, activate, operand
from .launch import Cut, fp32_precision, upcast

FAMILY = "column panel"


@triton.jit(do_not_specialize=["N", "panels"])
def column_panel_forward(
    x,  # (K, tokens), tokens rounded up to a whole token tile
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

    Grid: one program per panel and tile of BLOCK_M tokens, panels fastest.
    """
    panel = tl.program_id(0) % panels
    token = tl.program_id(0) // panels * BLOCK_M + tl.arange(0, BLOCK_M)  # [BLOCK_M]
    begin = tl.load(starts + panel)
    end = tl.load(starts + panel + 1)
    inner, packed = tl.arange(0, H), tl.arange(0, STEP)
    tile = values + begin.to(tl.int64) * (H * WIDTH) + inner[:, None] * WIDTH + packed[None, :]  # [H, STEP]
    # Column indices are loaded one tile ahead: the compiler does not double-buffer a loop that loads an index
    # and the data behind it in the same iteration.
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
    sums = activate(sums, ACTIVATION, y.dtype.element_ty == tl.float32)
    place = y + row.to(tl.int64)[:, None] * tokens + token[None, :]
    tl.store(place, sums.to(y.dtype.element_ty), mask=inside[:, None])


# Cuts by bytes per value, then by panel height. Exact float32 products hold their operands in registers,
# which requires small tiles and short steps. BLOCK_N is the height of the panel, BLOCK_K the columns of one
# product.
CUTS = {
    2: {64: Cut(128, 64, 64, 4, 3), 128: Cut(128, 128, 64, 8, 3)},
    4: {64: Cut(64, 64, 16, 4, 2), 128: Cut(64, 128, 16, 8, 2)},
}


def linear(
    x: Tensor, packed: ColumnPanelSparse, bias: Tensor | None, activation: str, residual: Tensor | None = None
) -> Tensor:
    """Return ``activation(x @ W.T + bias) + residual`` for x [..., in] in the dtype of W."""
    flat = x.reshape(-1, x.shape[-1])
    cut = CUTS[x.element_size()][packed.panel_rows]
    # Whole token tiles, so that the kernel masks no tokens; the results of the padding are dropped.
    tokens = triton.cdiv(flat.shape[0], cut.BLOCK_M) * cut.BLOCK_M
    transposed, y = x.new_empty(x.shape[-1], tokens), x.new_empty(packed.shape[0], tokens)
    transposed[:, : flat.shape[0]] = flat.t()
    if tokens:
        bias = None if bias is None else bias.contiguous()
        _launch(transposed, packed, bias, activation, y, cut, fp32_precision())
    out = y[:, : flat.shape[0]].t().contiguous().view(*x.shape[:-1], packed.shape[0])
    return out if residual is None else out + residual


def _launch(
    transposed: Tensor,
    packed: ColumnPanelSparse,
    bias: Tensor | None,
    activation: str,
    y: Tensor,
    cut: Cut,
    precision: str,
    kernel: Any = column_panel_forward,
) -> None:
    tokens = y.shape[1]
    kernel[(tokens // cut.BLOCK_M * packed.panels,)](
        transposed,
        packed.values,
        packed.columns,
        packed.starts,
        packed.rows,
        bias,
        y,
        packed.shape[0],
        packed.panels,
        tokens,
        H=packed.panel_rows,
        BLOCK_M=cut.BLOCK_M,
        STEP=cut.BLOCK_K,
        ACTIVATION=activation,
        PRECISION=precision,
        UPCAST=upcast(transposed.dtype),
        num_warps=cut.num_warps,
        num_stages=cut.num_stages,
    )


def input_gradient(gradient: Tensor, packed: ColumnPanelSparse, transposed: Sequence[Tensor]) -> Tensor:
    """Return gradient @ W [..., in] for gradient [..., out] in the dtype of W, through the dense matrix."""
    return gradient @ packed.to_dense()


def compile_cases() -> Iterator[CompileCase]:
    """Yield every configuration; those of bfloat16 are the defaults."""
    for short, (dtype, precision) in PRODUCTS.items():
        for height in PANEL_ROWS:
            cut = CUTS[dtype.itemsize][height]
            panels, tiles, tokens = 12, 45, 4096
            tensors = {
                "values": example(dtype, tiles, height, TILE_COLUMNS),
                "columns": example(torch.int32, (tiles + 1) * TILE_COLUMNS),
                "starts": example(torch.int32, panels + 1),
                "rows": example(torch.int32, panels * height),
            }
            packed = ColumnPanelSparse((panels * height, 768), tensors, {})
            x, bias = example(dtype, 768, tokens), example(dtype, panels * height)
            y = example(dtype, panels * height, tokens)
            product = height, cut.BLOCK_M, cut.BLOCK_K
            yield recorded_case(
                column_panel_forward,
                functools.partial(_launch, x, packed, bias, "gelu", y, cut, precision),
                family=FAMILY,
                label=f"h{height} {'x'.join(map(str, product))} w{cut.num_warps} s{cut.num_stages} {short}",
                product=product,
                default=short == "bf16",
            )
