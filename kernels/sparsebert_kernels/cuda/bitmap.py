"""Bitmap-compressed weights: decompress a layer, then multiply with torch's dense matrix product.

Decoding inside the matrix product would read values two bytes at a time, and instruction issue would limit
the product to one to two thirds of a tensor core's rate. A decompressed layer of BERT takes 1 to 8 MB and
stays in the L2 cache for the product that follows.

Each call allocates its scratch matrix and frees it once the product is queued, so the next layer of the same
size gets the same memory. Calls on two streams never share a scratch matrix. Under CUDA graph capture, it
belongs to the graph's pool, where no later call can free or move the memory that a replay writes. No function
of this module reads a tensor on the host.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from .. import reference
from ..formats.bitmap import BitmapSparse
from .aot.compile_case import PRODUCTS, CompileCase, example, recorded_case
from .device_functions import WIDTH

ROWS = 32
NUM_WARPS = 4


@triton.jit
def popcount(word):
    """Count the set bits of each int32, by additions only, which every target supports."""
    v = word.to(tl.uint32, bitcast=True)
    v = v - ((v >> 1) & 0x55555555)
    v = (v & 0x33333333) + ((v >> 2) & 0x33333333)
    v = (v + (v >> 4)) & 0x0F0F0F0F
    return ((v * 0x01010101) >> 24).to(tl.int32)


@triton.jit(do_not_specialize=["N", "words_per_row", "tiles"])
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
    """dense[n, k] = the kept weight at [n, k], else 0. Grid: (row blocks, tiles of 64 columns)."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)  # [ROWS]
    tile = tl.program_id(1)
    inside = row < N
    lane = tl.arange(0, WIDTH)  # [WIDTH]
    word = words + row.to(tl.int64) * words_per_row + tile * 2
    low = tl.load(word, mask=inside, other=0)
    high = tl.load(word + 1, mask=inside & (row * 0 + tile * 2 + 1 < words_per_row), other=0)
    first = tl.load(starts + row, mask=inside, other=0)
    first += tl.load(offsets + row.to(tl.int64) * tiles + tile, mask=inside, other=0).to(tl.int32) & 0xFFFF

    # Position of a kept weight in its row: the number of kept weights before the tile, plus the number before
    # it in the tile.
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
    """Return the dense matrix [N, K], equal to ``BitmapSparse.to_dense``."""
    dense = packed.values.new_empty(packed.shape)
    _launch(packed, dense)
    return dense


def _launch(packed: BitmapSparse, dense: Tensor, kernel: Any = decompress_bitmap) -> None:
    rows, columns = packed.shape
    offsets = packed.offsets.view(torch.int16)
    tiles = offsets.shape[1]
    kernel[(triton.cdiv(rows, ROWS), tiles)](
        packed.values,
        packed.words,
        offsets,
        packed.starts,
        dense,
        rows,
        columns,
        packed.words.shape[1],
        tiles,
        ROWS=ROWS,
        num_warps=NUM_WARPS,
    )


def linear(
    x: Tensor, packed: BitmapSparse, bias: Tensor | None, activation: str, residual: Tensor | None = None
) -> Tensor:
    """Return ``activation(x @ W.T + bias) + residual`` for x [..., in] in the dtype of W."""
    y = reference.linear(x, decompress(packed), bias, activation)
    return y if residual is None else y + residual


def input_gradient(gradient: Tensor, packed: BitmapSparse, transposed: Sequence[Tensor]) -> Tensor:
    """Return gradient @ W [..., in] for gradient [..., out] in the dtype of W."""
    return gradient @ decompress(packed)


def compile_cases() -> Iterator[CompileCase]:
    """Yield the kernel for each dtype of values; the bfloat16 case is the default."""
    for short in ("bf16", "fp16", "fp32"):
        dtype, _ = PRODUCTS[short]
        tensors = {
            "values": example(dtype, 768),
            "words": example(torch.int32, 768, 24),
            "offsets": example(torch.int16, 768, 12),
            "starts": example(torch.int32, 768),
        }
        packed = BitmapSparse((768, 768), tensors, {})
        dense = example(dtype, 768, 768)
        yield recorded_case(
            decompress_bitmap,
            functools.partial(_launch, packed, dense),
            family="bitmap decompression",
            label=f"{ROWS}x64 w{NUM_WARPS} {short}",
            default=short == "bf16",
        )
