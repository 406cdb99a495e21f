"""Gradients of a masked weight and of the scores behind its mask, from one pass over the tokens.

    G  = gradient.T @ x         dL/d(masked W), dense: pruned weights too
    dW = where(mask, G, 0)      or G, straight through the mask
    dS = G * W                  dL/dmask

The tokens are split where the weight has fewer tiles than the device has multiprocessors; a second kernel
then adds the partial sums in order. No atomics: the same input gives the same bits.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import triton
import triton.language as tl
from torch import Tensor

from .compile_case import CompileCase
from .masked import (
    ALIGNED,
    COMPILED,
    POINTERS,
    Tile,
    compile_case,
    kind_of_product,
    multiprocessors,
    rows_contiguous,
)
from .tiles import operand, precision, upcast


@triton.jit
def _store_weight_gradients(
    sums,  # [BLOCK_N, BLOCK_K]
    n,
    k,
    weight,
    words,
    dweight,
    dscores,
    N,
    K,
    words_per_row,
    weight_stride,
    NEEDS_WEIGHT: tl.constexpr,
    MASKED: tl.constexpr,
    NEEDS_SCORES: tl.constexpr,
):
    """From dL/d(masked W): its own gradient to the weight, masked or straight through, and to the scores."""
    inside = (n < N)[:, None] & (k < K)[None, :]
    place = n.to(tl.int64)[:, None] * K + k[None, :]
    if NEEDS_SCORES:
        source = weight + n.to(tl.int64)[:, None] * weight_stride + k[None, :]
        weights = tl.load(source, mask=inside, other=0.0).to(tl.float32)
        tl.store(dscores + place, (sums * weights).to(dscores.dtype.element_ty), mask=inside)
    if NEEDS_WEIGHT:
        if MASKED:
            word = words + n.to(tl.int64)[:, None] * words_per_row + (k // 32)[None, :]
            bits = tl.load(word, mask=inside, other=0)
            sums = tl.where(((bits >> (k & 31)[None, :]) & 1) != 0, sums, 0.0)
        tl.store(dweight + place, sums.to(dweight.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["M"])
def masked_weight_gradient(
    gradient,  # (M, N)
    x,  # (M, K)
    weight,  # (N, K)
    words,  # (N, words_per_row)
    dweight,  # (N, K)
    dscores,  # (N, K)
    partial,  # (splits, N, K) float32
    M,
    N,
    K,
    words_per_row,
    x_stride,
    weight_stride,
    tokens_per_split,  # a multiple of BLOCK_M
    SPLIT: tl.constexpr,  # store partial sums for `reduce_masked_weight_gradient`
    NEEDS_WEIGHT: tl.constexpr,
    MASKED: tl.constexpr,
    NEEDS_SCORES: tl.constexpr,
    EVEN_N: tl.constexpr,
    EVEN_K: tl.constexpr,
    PRECISION: tl.constexpr,
    UPCAST: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """gradient.T @ x over one split of the tokens. Grid: (tiles of N * tiles of K, splits)."""
    tiles_k = tl.cdiv(K, BLOCK_K)
    n = tl.program_id(0) // tiles_k * BLOCK_N + tl.arange(0, BLOCK_N)
    k = tl.program_id(0) % tiles_k * BLOCK_K + tl.arange(0, BLOCK_K)
    token = tl.arange(0, BLOCK_M)
    begin = tl.program_id(1) * tokens_per_split
    end = tl.minimum(begin + tokens_per_split, M)
    sums = tl.zeros((BLOCK_N, BLOCK_K), tl.float32)
    for start in range(begin, end, BLOCK_M):
        m = (start + token).to(tl.int64)[:, None]
        gradient_inside = (start + token < end)[:, None]
        x_inside = gradient_inside
        if not EVEN_N:
            gradient_inside = gradient_inside & (n < N)[None, :]
        if not EVEN_K:
            x_inside = x_inside & (k < K)[None, :]
        gradients = tl.load(gradient + m * N + n[None, :], mask=gradient_inside, other=0.0)
        activations = tl.load(x + m * x_stride + k[None, :], mask=x_inside, other=0.0)
        gradients, activations = operand(gradients, UPCAST), operand(activations, UPCAST)
        sums = tl.dot(tl.trans(gradients), activations, sums, input_precision=PRECISION)
    if SPLIT:
        place = (tl.program_id(1).to(tl.int64) * N + n)[:, None] * K + k[None, :]
        tl.store(partial + place, sums, mask=(n < N)[:, None] & (k < K)[None, :])
    else:
        _store_weight_gradients(
            sums, n, k, weight, words, dweight, dscores, N, K, words_per_row, weight_stride,
            NEEDS_WEIGHT, MASKED, NEEDS_SCORES,
        )  # fmt: skip


@triton.jit
def reduce_masked_weight_gradient(
    partial,  # (splits, N, K) float32
    weight,  # (N, K)
    words,  # (N, words_per_row)
    dweight,  # (N, K)
    dscores,  # (N, K)
    splits,
    N,
    K,
    words_per_row,
    weight_stride,
    NEEDS_WEIGHT: tl.constexpr,
    MASKED: tl.constexpr,
    NEEDS_SCORES: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """Add the partial sums in order. Grid: (tiles of N, tiles of K)."""
    n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    k = tl.program_id(1) * BLOCK_K + tl.arange(0, BLOCK_K)
    inside = (n < N)[:, None] & (k < K)[None, :]
    source = partial + n.to(tl.int64)[:, None] * K + k[None, :]
    size = tl.cast(N, tl.int64) * K
    sums = tl.zeros((BLOCK_N, BLOCK_K), tl.float32)
    for split in range(splits):
        sums += tl.load(source + split * size, mask=inside, other=0.0)
    _store_weight_gradients(
        sums, n, k, weight, words, dweight, dscores, N, K, words_per_row, weight_stride,
        NEEDS_WEIGHT, MASKED, NEEDS_SCORES,
    )  # fmt: skip


WEIGHT_GRADIENT = {
    "half": Tile(64, 128, 128, 8, 3),
    # The float32 weights of the epilogue need registers, too: at the full width Blackwell spills.
    "half, float32 weight": Tile(64, 128, 64, 8, 3),
    "tf32": Tile(32, 64, 64, 4, 3),
    "ieee": Tile(32, 64, 64, 4, 3),
}
REDUCTION = {"BLOCK_N": 8, "BLOCK_K": 128}
REDUCTION_WARPS = 4
LEAST_TOKENS_PER_SPLIT = 512


def weight_gradient_tile(kind: str, x: torch.dtype, weight: torch.dtype) -> Tile:
    """The tile for a product of that kind (`kind_of_product`) and those dtypes."""
    return WEIGHT_GRADIENT["half, float32 weight" if kind == "half" and weight != x else kind]


def weight_gradients(
    gradient: Tensor,
    x: Tensor,
    weight: Tensor,
    words: Tensor,
    *,
    needs_weight: bool,
    straight_through: bool,
    scores_dtype: torch.dtype | None,
) -> tuple[Tensor, Tensor]:
    """``gradient.T @ x``, masked unless straight through, for the weight, and times the weight for the
    scores.

    gradient [M, N], x [M, K]. Returns dweight [N, K] in the dtype of the weight (empty unless needed) and
    dscores [N, K] in ``scores_dtype`` (empty where that is None).
    """
    gradient, x, words = gradient.contiguous(), rows_contiguous(x), words.contiguous()
    weight = rows_contiguous(weight)
    (M, K), N = x.shape, weight.shape[0]
    dweight = weight.new_empty((N, K) if needs_weight else 0)
    dscores = weight.new_empty((N, K) if scores_dtype else 0, dtype=scores_dtype or weight.dtype)
    tile = weight_gradient_tile(kind_of_product(x), x.dtype, weight.dtype)
    tiles = triton.cdiv(N, tile.BLOCK_N) * triton.cdiv(K, tile.BLOCK_K)
    splits = max(1, min(multiprocessors(x.device) // tiles, M // LEAST_TOKENS_PER_SPLIT))
    tokens = triton.cdiv(triton.cdiv(M, splits), tile.BLOCK_M) * tile.BLOCK_M
    partial = x.new_empty((splits, N, K) if splits > 1 else 0, dtype=torch.float32)
    epilogue = {
        "NEEDS_WEIGHT": needs_weight,
        "MASKED": not straight_through,
        "NEEDS_SCORES": scores_dtype is not None,
    }
    with torch.cuda.device_of(x):
        masked_weight_gradient[(tiles, splits)](
            gradient, x, weight, words, dweight, dscores, partial,
            M, N, K, words.shape[1], x.stride(0), weight.stride(0), tokens,
            SPLIT=splits > 1, **epilogue, EVEN_N=N % tile.BLOCK_N == 0, EVEN_K=K % tile.BLOCK_K == 0,
            PRECISION=precision(), UPCAST=upcast(x.dtype) or upcast(weight.dtype), **tile.launch,
        )  # fmt: skip
        if splits > 1:
            grid = triton.cdiv(N, REDUCTION["BLOCK_N"]), triton.cdiv(K, REDUCTION["BLOCK_K"])
            reduce_masked_weight_gradient[grid](
                partial, weight, words, dweight, dscores, splits, N, K, words.shape[1], weight.stride(0),
                **epilogue, **REDUCTION, num_warps=REDUCTION_WARPS,
            )  # fmt: skip
    return dweight, dscores


def compile_cases() -> Iterator[CompileCase]:
    """Every kernel for each pair of dtypes; the default ones are those of bfloat16."""
    epilogue = {"NEEDS_WEIGHT": True, "MASKED": True, "NEEDS_SCORES": True}
    sums = {"partial": "*fp32", "dscores": "*fp32"}
    for *dtypes, kind in COMPILED:
        pair = dtypes[0], dtypes[1]
        tile = weight_gradient_tile(kind, *pair)
        x, weight = (POINTERS[dtype] for dtype in pair)
        outputs = {**sums, "dweight": weight}
        product = tile.BLOCK_N, tile.BLOCK_K, tile.BLOCK_M
        for split in (False, True):
            family = "masked dW" + (" split" if split else "")
            arguments = {"gradient": x, "x": x, **outputs, "x_stride": "i32", "tokens_per_split": "i32"}
            constants = {**epilogue, "SPLIT": split, "EVEN_N": True}
            yield compile_case(
                family, pair, kind, masked_weight_gradient, arguments, constants, tile, product
            )
    sizes = dict.fromkeys(("splits", "N", "K", "words_per_row", "weight_stride"), "i32")
    for dtype in dict.fromkeys(weight for _, weight, _ in COMPILED):
        weight = POINTERS[dtype]
        yield CompileCase(
            family="masked dW reduction",
            label=f"{REDUCTION['BLOCK_N']}x{REDUCTION['BLOCK_K']} weight {weight[1:]}",
            kernel=reduce_masked_weight_gradient,
            arguments={"weight": weight, "words": "*i32", **sums, "dweight": weight, **sizes},
            constants={**epilogue, **REDUCTION},
            num_warps=REDUCTION_WARPS,
            num_stages=1,
            aligned=tuple(name for name in ALIGNED if name in sizes),
            default=dtype != torch.float16,
        )
