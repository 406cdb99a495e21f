"""Masked matmul: a dense weight is read through a bit mask, which is applied in registers.

    y  = x @ where(mask, W, 0).T + bias        dx = gradient @ where(mask, W, 0)

No masked copy of W is written. The mask is one int32 word per row and 32 columns (bit i of word w is column
32 w + i). The words are loaded as vectors with one entry per row: a matrix with one word per weight would
make the pipeline stage 32 KB of mask per step. The weight may be wider than x (float32 under autocast); it is
rounded to the dtype of x after the selection, also in registers.

N and K must be multiples of 16 (``suits``): other rows would be loaded value by value, which spills
registers. torch multiplies a masked copy of such a weight instead, and adds up as its settings allow.

The product is computed as (W @ x.T).T, so that the masked tile is the left operand: tensor cores can read it
from registers, and it never returns to shared memory. The kernels' sums are float32, in a fixed order.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterator
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..dtype_names import short_name
from .aot.compile_case import CompileCase, example, recorded_case
from .device_functions import operand
from .hardware import DEFAULT_SHARED_MEMORY, SHARED_MEMORY, multiprocessors, shared_memory
from .launch import ALIGNED_ELEMENTS, Cut, aligned, aligned_rows, fp32_precision, upcast


@triton.jit
def _kept(words, rows, words_per_row, first_word, BLOCK_K: tl.constexpr, EVEN_K: tl.constexpr):
    """Return the mask of ``rows`` over BLOCK_K columns from word ``first_word`` on: bool [rows, BLOCK_K]."""
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


@triton.jit(do_not_specialize=["M", "words_per_row"])
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
    # Rows past the end read the last row and are not stored, which is cheaper than masking every load.
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


@triton.jit(do_not_specialize=["M", "words_per_row"])
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
    # Offsets from the corner of the tile fit 32 bits: 64 bits for every element would cost registers.
    corner = dx + (tl.program_id(0) // tiles_k * BLOCK_M).to(tl.int64) * K + first_column
    dx_tile = corner + tl.arange(0, BLOCK_M)[:, None] * K + tl.arange(0, BLOCK_K)[None, :]
    inside = (m < M)[:, None] & (k < K)[None, :]
    tl.store(dx_tile, tl.trans(sums).to(dx.dtype.element_ty), mask=inside)


# Cuts by precision of the products (see `product_precision`), largest first. A launch takes the first cut
# that gives every multiprocessor a program, else the last. Exact float32 products ("ieee") run without tensor
# cores, where small cuts suffice.
FORWARD = {
    "half": (Cut(256, 128, 64, 8, 3), Cut(128, 128, 64, 8, 3), Cut(128, 64, 64, 4, 3)),
    "tf32": (Cut(128, 128, 32, 8, 3), Cut(128, 64, 32, 4, 3)),
    "ieee": (Cut(64, 64, 32, 4, 3),),
}
INPUT_GRADIENT = {
    "half": (Cut(256, 64, 128, 8, 3), Cut(128, 64, 128, 8, 3), Cut(128, 64, 64, 4, 3)),
    "tf32": (Cut(128, 32, 128, 8, 3), Cut(128, 32, 64, 4, 3)),
    # Programs of 4 warps would spill on Blackwell where a tile ends beyond the weight.
    "ieee": (Cut(128, 32, 64, 8, 3), Cut(64, 32, 64, 8, 3)),
}
# Programs of 256 tokens spill registers before Hopper and exceed the shared memory of AMD GPUs.
WIDE_TOKENS = 256
WIDE_FROM = (9, 0)
WIDE_TARGETS = ("sm_90", "sm_100")


def suits(weight: Tensor) -> bool:
    """Return whether ``forward`` and ``input_gradient`` multiply a weight [N, K] of this shape."""
    return not any(size % ALIGNED_ELEMENTS for size in weight.shape)


def forward(x: Tensor, weight: Tensor, words: Tensor, bias: Tensor | None) -> Tensor:
    """Return ``x @ where(mask, weight, 0).T + bias`` [M, N] in the dtype of x; x [M, K], weight [N, K]."""
    x, weight, words = aligned_rows(x), aligned_rows(weight), aligned(words)
    bias = None if bias is None else aligned(bias)
    M, N = x.shape[0], weight.shape[0]
    y = x.new_empty(M, N)
    cuts = FORWARD[product_precision(x)]
    cut = select_cut(cuts, x.device, lambda c: triton.cdiv(M, c.BLOCK_M) * triton.cdiv(N, c.BLOCK_N))
    if M:
        with torch.cuda.device_of(x):
            _launch_forward(x, weight, words, bias, y, cut, fp32_precision())
    return y


def _launch_forward(
    x: Tensor,
    weight: Tensor,
    words: Tensor,
    bias: Tensor | None,
    y: Tensor,
    cut: Cut,
    precision: str,
    kernel: Any = masked_forward,
) -> None:
    (M, K), N = x.shape, weight.shape[0]
    kernel[(triton.cdiv(M, cut.BLOCK_M) * triton.cdiv(N, cut.BLOCK_N),)](
        x, weight, words, bias, y,
        M, N, K, words.shape[1], x.stride(0), weight.stride(0),
        EVEN_K=K % cut.BLOCK_K == 0,
        PRECISION=precision, UPCAST=upcast(x.dtype) or upcast(weight.dtype), **cut.launch,
    )  # fmt: skip


def input_gradient(gradient: Tensor, weight: Tensor, words: Tensor) -> Tensor:
    """Return ``gradient @ where(mask, weight, 0)`` [M, K] in the dtype of the gradient [M, N]."""
    gradient, weight, words = aligned(gradient), aligned_rows(weight), aligned(words)
    M, K = gradient.shape[0], weight.shape[1]
    dx = gradient.new_empty(M, K)
    cuts = INPUT_GRADIENT[product_precision(gradient)]
    cut = select_cut(cuts, dx.device, lambda c: triton.cdiv(M, c.BLOCK_M) * triton.cdiv(K, c.BLOCK_K))
    if M:
        with torch.cuda.device_of(dx):
            _launch_input_gradient(gradient, weight, words, dx, cut, fp32_precision())
    return dx


def _launch_input_gradient(
    gradient: Tensor,
    weight: Tensor,
    words: Tensor,
    dx: Tensor,
    cut: Cut,
    precision: str,
    kernel: Any = masked_input_gradient,
) -> None:
    M, (N, K) = gradient.shape[0], weight.shape
    kernel[(triton.cdiv(M, cut.BLOCK_M) * triton.cdiv(K, cut.BLOCK_K),)](
        gradient, weight, words, dx, M, N, K, words.shape[1], weight.stride(0),
        EVEN_K=K % cut.BLOCK_K == 0, EVEN_N=N % cut.BLOCK_N == 0,
        PRECISION=precision, UPCAST=upcast(gradient.dtype) or upcast(weight.dtype), **cut.launch,
    )  # fmt: skip


def product_precision(x: Tensor) -> str:
    """Return "half", or for float32 the precision that torch's settings allow, "tf32" or "ieee"."""
    return "half" if x.dtype != torch.float32 else fp32_precision()


def select_cut(cuts: tuple[Cut, ...], device: torch.device, programs: Callable[[Cut], int]) -> Cut:
    """Return the first of ``cuts`` that runs on the device and fills it, else the last."""
    possible = _possible(cuts, device)
    return next((cut for cut in possible if programs(cut) >= multiprocessors(device)), possible[-1])


@functools.cache
def _possible(cuts: tuple[Cut, ...], device: torch.device) -> tuple[Cut, ...]:
    narrow = tuple(cut for cut in cuts if cut.BLOCK_M < WIDE_TOKENS)
    if device.type != "cuda" or torch.version.hip:
        return narrow
    memory = shared_memory(device)
    if memory < DEFAULT_SHARED_MEMORY:
        return cuts[-1:]
    return cuts if memory >= SHARED_MEMORY[WIDE_FROM] else narrow


# Dtypes of x and weight, and the precision of their products.
COMPILED = (
    (torch.bfloat16, torch.bfloat16, "half"),
    (torch.bfloat16, torch.float32, "half"),
    (torch.float16, torch.float16, "half"),
    (torch.float32, torch.float32, "tf32"),
    (torch.float32, torch.float32, "ieee"),
)


# Shapes [N, K] of the weight: whole tiles, and TinyBERT's feed-forward width, which ends inside a tile.
COMPILED_SHAPES = ((768, 768), (1200, 1200))


def compile_case(
    kernel: Any,
    launch: Callable[[Any], object],
    family: str,
    dtypes: tuple[torch.dtype, torch.dtype],
    kind: str,
    cut: Cut,
    product: tuple[int, int, int],
    shape: tuple[int, int] = COMPILED_SHAPES[0],
) -> CompileCase:
    """Record a launch of a kernel over x and weight of ``dtypes``; see ``aot.compile_case.recorded_case``."""
    x, weight = map(short_name, dtypes)
    of_shape = "" if shape == COMPILED_SHAPES[0] else f" {shape[0]}x{shape[1]}"
    return recorded_case(
        kernel,
        launch,
        family=family,
        label=f"{cut} x {x} weight {weight} {kind}{of_shape}",
        product=product,
        default=dtypes[0] == torch.bfloat16,
        targets=WIDE_TARGETS if cut.BLOCK_M == WIDE_TOKENS else (),
    )


def compile_cases() -> Iterator[CompileCase]:
    """Yield both kernels with every cut, for each pair of dtypes; those of bfloat16 are the defaults."""
    for (x_dtype, weight_dtype, kind), shape in itertools.product(COMPILED, COMPILED_SHAPES):
        dtypes, precision, (N, K) = (x_dtype, weight_dtype), "tf32" if kind == "tf32" else "ieee", shape
        x, y, bias = example(x_dtype, 4096, K), example(x_dtype, 4096, N), example(x_dtype, N)
        weight, words = example(weight_dtype, N, K), example(torch.int32, N, triton.cdiv(K, 32))
        for cut in FORWARD[kind]:
            launch = functools.partial(_launch_forward, x, weight, words, bias, y, cut, precision)
            product = cut.BLOCK_N, cut.BLOCK_M, cut.BLOCK_K
            yield compile_case(masked_forward, launch, "masked forward", dtypes, kind, cut, product, shape)
        for cut in INPUT_GRADIENT[kind]:
            launch = functools.partial(_launch_input_gradient, y, weight, words, x, cut, precision)
            product = cut.BLOCK_K, cut.BLOCK_M, cut.BLOCK_N
            yield compile_case(masked_input_gradient, launch, "masked dX", dtypes, kind, cut, product, shape)
