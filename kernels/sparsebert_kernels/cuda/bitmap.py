"""Bitmap-compressed weights: decompress a layer, then the dense matrix product of torch.

Decoding inside the matrix product would read values two bytes at a time and be bound by instruction issue at
a third to two thirds of a tensor core's rate. Decompressed, a layer of BERT is 1 to 8 MB: it stays in the L2
cache for the product that follows.

The scratch matrix is an ordinary allocation of each call and goes back when the product is queued, so the
next layer of that size gets the same memory. That keeps what an own buffer would have to promise: calls on
two streams never share it, and under CUDA graph capture it belongs to the graph's pool, where no later call
can free or move what a replay will write. Nothing here reads a tensor on the host.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import triton
import triton.language as tl
from torch import Tensor

from .. import reference
from ..formats.bitmap import BitmapSparse
from .compile_case import CompileCase

ROWS = 32
NUM_WARPS = 4


@triton.jit
def popcount(word):
    """Set bits of each int32: additions only, so that it runs everywhere."""
    v = word.to(tl.uint32, bitcast=True)
    v = v - ((v >> 1) & 0x55555555)
    v = (v & 0x33333333) + ((v >> 2) & 0x33333333)
    v = (v + (v >> 4)) & 0x0F0F0F0F
    return ((v * 0x01010101) >> 24).to(tl.int32)


@triton.jit
def decompress_bitmap(
    values,  # (kept weights,)
    words,  # (N, words_per_row)
    offsets,  # (N, tiles)
    starts,  # (N,)
    dense,  # (N, K)
    N,
    K,
    words_per_row,
    tiles,
    ROWS: tl.constexpr,
):
    """dense[n, k] = the kept weight there, else 0. Grid: (row blocks, tiles of 64 columns)."""
    WIDTH: tl.constexpr = 64
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)  # [ROWS]
    tile = tl.program_id(1)
    inside = row < N
    lane = tl.arange(0, WIDTH)  # [WIDTH]
    word = words + row.to(tl.int64) * words_per_row + tile * 2
    low = tl.load(word, mask=inside, other=0)
    high = tl.load(word + 1, mask=inside & (row * 0 + tile * 2 + 1 < words_per_row), other=0)
    first = tl.load(starts + row, mask=inside, other=0)
    first += tl.load(offsets + row.to(tl.int64) * tiles + tile, mask=inside, other=0).to(tl.int32) & 0xFFFF

    # A kept weight's place: those of the row before the tile, plus those of the tile before it.
    in_low = (lane < 32)[None, :]
    bits = tl.where(in_low, low[:, None], high[:, None])  # [ROWS, WIDTH]
    bit = (lane & 31)[None, :]
    before = tl.where(in_low, 0, popcount(low)[:, None]) + popcount(bits & ((1 << bit) - 1))
    kept = ((bits >> bit) & 1) != 0
    weights = tl.load(values + first[:, None] + before, mask=kept, other=0.0)
    column = tile * WIDTH + lane
    place = dense + row.to(tl.int64)[:, None] * K + column[None, :]
    tl.store(place, weights, mask=inside[:, None] & (column < K)[None, :])


def decompress(packed: BitmapSparse) -> Tensor:
    """The dense matrix [N, K], as `BitmapSparse.to_dense` gives it."""
    rows, columns = packed.shape
    dense = packed.values.new_empty(rows, columns)
    tiles = packed.offsets.shape[1]
    decompress_bitmap[(triton.cdiv(rows, ROWS), tiles)](
        packed.values,
        packed.words,
        packed.offsets,
        packed.starts,
        dense,
        rows,
        columns,
        packed.words.shape[1],
        tiles,
        ROWS=ROWS,
        num_warps=NUM_WARPS,
    )
    return dense


def linear(
    x: Tensor, packed: BitmapSparse, bias: Tensor | None, activation: str, residual: Tensor | None = None
) -> Tensor:
    """``activation(x @ W.T + bias) + residual`` for x [..., in] in the dtype of W."""
    y = reference.linear(x, decompress(packed), bias, activation)
    return y if residual is None else y + residual


def input_gradient(gradient: Tensor, packed: BitmapSparse, transposed: Sequence[Tensor]) -> Tensor:
    """gradient @ W [..., in] for gradient [..., out] in the dtype of W."""
    return gradient @ decompress(packed)


def compile_cases() -> Iterator[CompileCase]:
    """The kernel for each dtype of values; the default one is bfloat16's."""
    for dtype in ("bf16", "fp16", "fp32"):
        arguments = {"values": f"*{dtype}", "words": "*i32", "offsets": "*i16", "starts": "*i32"}
        arguments |= {"dense": f"*{dtype}", "N": "i32", "K": "i32", "words_per_row": "i32", "tiles": "i32"}
        yield CompileCase(
            family="bitmap decompression",
            label=f"{ROWS}x64 w{NUM_WARPS} {dtype}",
            kernel=decompress_bitmap,
            arguments=arguments,
            constants={"ROWS": ROWS},
            num_warps=NUM_WARPS,
            num_stages=1,
            aligned=("N", "K"),
            default=dtype == "bf16",
        )
