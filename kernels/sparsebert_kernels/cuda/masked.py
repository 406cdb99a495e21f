"""Masked matmul: a dense weight read through a bit mask, which is applied in registers.

    y  = x @ where(mask, W, 0).T + bias        dx = gradient @ where(mask, W, 0)

No masked copy of W is ever written. The mask comes as one int32 word a row per 32 columns (bit i of word w
is column 32 w + i) and its loads are one-dimensional: loading a word for every weight would make the pipeline
stage 32 KB of mask a step. The weight may be wider than x (float32 under autocast): it is rounded to the
dtype of x after the selection, again in registers.

The product is taken as (W @ x.T).T, so that the masked tile is the left operand, which a tensor core may take
from registers: it never goes back to shared memory. Sums are float32, taken in one fixed order.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from sparsebert_kernels.cuda.tile_configs import DEFAULT_SHARED_MEMORY, LEAST_SHARED_MEMORY, SHARED_MEMORY

from .compile_case import CompileCase
from .tiles import operand, precision, upcast


@triton.jit
def _kept(words, rows, words_per_row, first_word, BLOCK_K: tl.constexpr, EVEN_K: tl.constexpr):
    """Which weights of `rows` are kept in BLOCK_K columns from word `first_word` on: bool [rows, BLOCK_K]."""
    lane = tl.arange(0, BLOCK_K)
    base = words + rows.to(tl.int64) * words_per_row + first_word
    bits = tl.load(base)[:, None]
    for word in tl.static_range(1, BLOCK_K // 32):
        if EVEN_K:
            next_bits = tl.load(base + word)
        else:
            next_bits = tl.load(base + word, mask=rows * 0 + first_word + word < words_per_row, other=0)
        bits = tl.where(lane[None, :] >= 32 * word, next_bits[:, None], bits)
    return ((bits >> (lane & 31)[None, :]) & 1) != 0


@triton.jit(do_not_specialize=["M"])
def masked_forward(
    x,  # (M, K)
    weight,  # (N, K)
    words,  # (N, words_per_row)
    bias,  # (N,) any floating-point dtype, or None
    y,  # (M, N)
    M,
    N,
    K,
    words_per_row,
    x_stride,
    weight_stride,
    EVEN_K: tl.constexpr,  # K is a multiple of BLOCK_K
    PRECISION: tl.constexpr,
    UPCAST: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """y = x @ where(mask, W, 0).T + bias. Grid: (tiles of M * tiles of N,), tiles of N fastest."""
    tiles_n = tl.cdiv(N, BLOCK_N)
    m = tl.program_id(0) // tiles_n * BLOCK_M + tl.arange(0, BLOCK_M)
    n = tl.program_id(0) % tiles_n * BLOCK_N + tl.arange(0, BLOCK_N)
    k = tl.arange(0, BLOCK_K)
    # Rows past the end are read again and not stored: cheaper than masking every load.
    row = tl.minimum(n, N - 1)
    x_tile = x + tl.minimum(m, M - 1).to(tl.int64)[:, None] * x_stride + k[None, :]
    weight_tile = weight + row.to(tl.int64)[:, None] * weight_stride + k[None, :]
    sums = tl.zeros((BLOCK_N, BLOCK_M), tl.float32)
    for start in range(0, K, BLOCK_K):
        if EVEN_K:
            activations = tl.load(x_tile + start)  # [BLOCK_M, BLOCK_K]
            weights = tl.load(weight_tile + start)  # [BLOCK_N, BLOCK_K]
        else:
            activations = tl.load(x_tile + start, mask=(start + k < K)[None, :], other=0.0)
            weights = tl.load(weight_tile + start, mask=(start + k < K)[None, :], other=0.0)
        kept = _kept(words, row, words_per_row, start // 32, BLOCK_K, EVEN_K)
        activations = operand(activations, UPCAST)
        weights = tl.where(kept, operand(weights, UPCAST), 0.0).to(activations.dtype)
        sums = tl.dot(weights, tl.trans(activations), sums, input_precision=PRECISION)
    if bias is not None:
        sums += tl.load(bias + row).to(tl.float32)[:, None]
    y_tile = y + m.to(tl.int64)[:, None] * N + n[None, :]
    inside = (m < M)[:, None] & (n < N)[None, :]
    tl.store(y_tile, tl.trans(sums).to(y.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["M"])
def masked_input_gradient(
    gradient,  # (M, N)
    weight,  # (N, K)
    words,  # (N, words_per_row)
    dx,  # (M, K)
    M,
    N,
    K,
    words_per_row,
    weight_stride,
    EVEN_K: tl.constexpr,
    EVEN_N: tl.constexpr,  # N is a multiple of BLOCK_N
    PRECISION: tl.constexpr,
    UPCAST: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """dx = gradient @ where(mask, W, 0). Grid: (tiles of M * tiles of K,), tiles of K fastest."""
    tiles_k = tl.cdiv(K, BLOCK_K)
    m = tl.program_id(0) // tiles_k * BLOCK_M + tl.arange(0, BLOCK_M)
    first_column = tl.program_id(0) % tiles_k * BLOCK_K
    k = first_column + tl.arange(0, BLOCK_K)
    n = tl.arange(0, BLOCK_N)
    gradient_tile = gradient + tl.minimum(m, M - 1).to(tl.int64)[:, None] * N + n[None, :]
    sums = tl.zeros((BLOCK_K, BLOCK_M), tl.float32)
    for start in range(0, N, BLOCK_N):
        row = start + n
        if EVEN_N:
            gradients = tl.load(gradient_tile + start)  # [BLOCK_M, BLOCK_N]
        else:
            gradients = tl.load(gradient_tile + start, mask=(row < N)[None, :], other=0.0)
            row = tl.minimum(row, N - 1)
        weight_tile = weight + row.to(tl.int64)[:, None] * weight_stride + k[None, :]
        if EVEN_K:
            weights = tl.load(weight_tile)  # [BLOCK_N, BLOCK_K]
        else:
            column_inside = (k < K)[None, :]
            weights = tl.load(weight_tile, mask=column_inside, other=0.0)
        kept = _kept(words, row, words_per_row, first_column // 32, BLOCK_K, EVEN_K)
        if not EVEN_N:
            kept = kept & (start + n < N)[:, None]
        gradients = operand(gradients, UPCAST)
        weights = tl.where(kept, operand(weights, UPCAST), 0.0).to(gradients.dtype)
        sums = tl.dot(tl.trans(weights), tl.trans(gradients), sums, input_precision=PRECISION)
    # From the corner of the tile on, 32 bits are enough: 64 for every element would cost registers.
    corner = dx + (tl.program_id(0) // tiles_k * BLOCK_M).to(tl.int64) * K + first_column
    dx_tile = corner + tl.arange(0, BLOCK_M)[:, None] * K + tl.arange(0, BLOCK_K)[None, :]
    inside = (m < M)[:, None] & (k < K)[None, :]
    tl.store(dx_tile, tl.trans(sums).to(dx.dtype.element_ty), mask=inside)


@dataclass(frozen=True)
class Tile:
    """One configuration: tokens, output rows and columns that a program takes, or steps over."""

    BLOCK_M: int
    BLOCK_N: int
    BLOCK_K: int
    num_warps: int
    num_stages: int

    @property
    def launch(self) -> dict[str, int]:
        """As keyword arguments of a launch."""
        return asdict(self)

    @property
    def blocks(self) -> dict[str, int]:
        return {name: size for name, size in asdict(self).items() if name.startswith("BLOCK")}

    def __str__(self) -> str:
        return f"{self.BLOCK_M}x{self.BLOCK_N}x{self.BLOCK_K} w{self.num_warps} s{self.num_stages}"


# By how products are taken: of half precision, or of float32 as torch is set. Largest tile first: the first
# one that gives every multiprocessor something to do is taken, else the last. Exact float32 products ("ieee")
# run without tensor cores, where small tiles are enough.
FORWARD = {
    "half": (Tile(256, 128, 64, 8, 3), Tile(128, 128, 64, 8, 3), Tile(128, 64, 64, 4, 3)),
    "tf32": (Tile(128, 128, 32, 8, 3), Tile(128, 64, 32, 4, 3)),
    "ieee": (Tile(64, 64, 32, 4, 3),),
}
INPUT_GRADIENT = {
    "half": (Tile(256, 64, 128, 8, 3), Tile(128, 64, 128, 8, 3), Tile(128, 64, 64, 4, 3)),
    "tf32": (Tile(128, 32, 128, 8, 3), Tile(128, 32, 64, 4, 3)),
    "ieee": (Tile(64, 32, 64, 4, 3),),
}
# 256 tokens a program spill registers before Hopper, and need more shared memory than AMD has.
WIDE_TOKENS = 256
WIDE_FROM = (9, 0)
WIDE_TARGETS = ("sm_90", "sm_100")


def forward(x: Tensor, weight: Tensor, words: Tensor, bias: Tensor | None) -> Tensor:
    """``x @ where(mask, weight, 0).T + bias`` [M, N] in the dtype of x; x [M, K], weight [N, K]."""
    x, weight, words = rows_contiguous(x), rows_contiguous(weight), words.contiguous()
    bias = None if bias is None else bias.contiguous()
    (M, K), N = x.shape, weight.shape[0]
    y = x.new_empty(M, N)
    kind = kind_of_product(x)
    tile = choose(FORWARD[kind], x.device, lambda t: triton.cdiv(M, t.BLOCK_M) * triton.cdiv(N, t.BLOCK_N))
    if M:
        with torch.cuda.device_of(x):
            masked_forward[(triton.cdiv(M, tile.BLOCK_M) * triton.cdiv(N, tile.BLOCK_N),)](
                x, weight, words, bias, y,
                M, N, K, words.shape[1], x.stride(0), weight.stride(0),
                EVEN_K=K % tile.BLOCK_K == 0,
                PRECISION=precision(), UPCAST=upcast(x.dtype) or upcast(weight.dtype), **tile.launch,
            )  # fmt: skip
    return y


def input_gradient(gradient: Tensor, weight: Tensor, words: Tensor) -> Tensor:
    """``gradient @ where(mask, weight, 0)`` [M, K] in the dtype of the gradient [M, N]."""
    gradient, weight, words = gradient.contiguous(), rows_contiguous(weight), words.contiguous()
    M, (N, K) = gradient.shape[0], weight.shape
    dx = gradient.new_empty(M, K)
    kind = kind_of_product(gradient)
    tile = choose(
        INPUT_GRADIENT[kind], dx.device, lambda t: triton.cdiv(M, t.BLOCK_M) * triton.cdiv(K, t.BLOCK_K)
    )
    if M:
        with torch.cuda.device_of(dx):
            masked_input_gradient[(triton.cdiv(M, tile.BLOCK_M) * triton.cdiv(K, tile.BLOCK_K),)](
                gradient, weight, words, dx, M, N, K, words.shape[1], weight.stride(0),
                EVEN_K=K % tile.BLOCK_K == 0, EVEN_N=N % tile.BLOCK_N == 0,
                PRECISION=precision(), UPCAST=upcast(gradient.dtype) or upcast(weight.dtype), **tile.launch,
            )  # fmt: skip
    return dx


def rows_contiguous(matrix: Tensor) -> Tensor:
    """``matrix`` with neighbouring columns side by side and rows that do not overlap."""
    row, column = matrix.stride()
    return matrix if column == 1 and row >= matrix.shape[1] else matrix.contiguous()


def kind_of_product(x: Tensor) -> str:
    """ "half", or for float32 "tf32" or "ieee" as torch is set."""
    return "half" if x.dtype != torch.float32 else precision()


def choose(tiles: tuple[Tile, ...], device: torch.device, programs: Callable[[Tile], int]) -> Tile:
    """The first of ``tiles`` that the device can run and that fills it, else the last."""
    possible = _possible(tiles, device)
    return next((tile for tile in possible if programs(tile) >= multiprocessors(device)), possible[-1])


@functools.cache
def _possible(tiles: tuple[Tile, ...], device: torch.device) -> tuple[Tile, ...]:
    narrow = tuple(tile for tile in tiles if tile.BLOCK_M < WIDE_TOKENS)
    if device.type != "cuda" or torch.version.hip:
        return narrow
    shared_memory = SHARED_MEMORY.get(torch.cuda.get_device_capability(device), LEAST_SHARED_MEMORY)
    if shared_memory < DEFAULT_SHARED_MEMORY:
        return tiles[-1:]
    return tiles if shared_memory >= SHARED_MEMORY[WIDE_FROM] else narrow


@functools.cache
def multiprocessors(device: torch.device) -> int:
    if device.type != "cuda":
        return 8  # any number will do in the interpreter
    return torch.cuda.get_device_properties(device).multi_processor_count


POINTERS = {torch.bfloat16: "*bf16", torch.float16: "*fp16", torch.float32: "*fp32"}
# x and weight, and how float32 products are taken
COMPILED = (
    (torch.bfloat16, torch.bfloat16, "half"),
    (torch.bfloat16, torch.float32, "half"),
    (torch.float16, torch.float16, "half"),
    (torch.float32, torch.float32, "tf32"),
    (torch.float32, torch.float32, "ieee"),
)
ALIGNED = ("N", "K", "x_stride", "weight_stride", "tokens_per_split")


def compile_case(
    family: str,
    dtypes: tuple[torch.dtype, torch.dtype],
    kind: str,
    kernel: Any,
    arguments: dict[str, str],
    constants: dict[str, Any],
    tile: Tile,
    product: tuple[int, int, int],
) -> CompileCase:
    """A kernel over x and weight of ``dtypes``: ``arguments`` without those that all of them have."""
    x, weight = (POINTERS[dtype] for dtype in dtypes)
    arguments = {"weight": weight, "words": "*i32", **arguments}
    arguments |= dict.fromkeys(("M", "N", "K", "words_per_row", "weight_stride"), "i32")
    return CompileCase(
        family=family,
        label=f"{tile} x {x[1:]} weight {weight[1:]} {kind}",
        kernel=kernel,
        arguments=arguments,
        constants={
            **constants,
            "EVEN_K": True,
            "PRECISION": "tf32" if kind == "tf32" else "ieee",
            "UPCAST": False,
            **tile.blocks,
        },
        num_warps=tile.num_warps,
        num_stages=tile.num_stages,
        aligned=tuple(name for name in ALIGNED if name in arguments),
        tile=product,
        default=dtypes[0] == torch.bfloat16,
        targets=WIDE_TARGETS if tile.BLOCK_M == WIDE_TOKENS else (),
    )


def compile_cases() -> Iterator[CompileCase]:
    """Both kernels in every tile, for each pair of dtypes; the default ones are those of bfloat16."""
    for *dtypes, kind in COMPILED:
        pair = dtypes[0], dtypes[1]
        x = POINTERS[pair[0]]
        for tile in FORWARD[kind]:
            arguments = {"x": x, "bias": x, "y": x, "x_stride": "i32"}
            product = tile.BLOCK_N, tile.BLOCK_M, tile.BLOCK_K
            yield compile_case("masked forward", pair, kind, masked_forward, arguments, {}, tile, product)
        for tile in INPUT_GRADIENT[kind]:
            arguments = {"gradient": x, "dx": x}
            product = tile.BLOCK_K, tile.BLOCK_M, tile.BLOCK_N
            yield compile_case(
                "masked dX", pair, kind, masked_input_gradient, arguments, {"EVEN_N": True}, tile, product
            )
