"""Gradients of a masked weight and of the scores behind its mask, from one pass over the tokens.

    G  = gradient.T @ x         dL/d(masked W), dense: includes pruned weights
    dW = where(mask, G, 0)      or G with straight_through
    dS = G * W                  dL/dmask

If the weight has fewer tiles than the device has multiprocessors, the tokens are split and a second kernel
adds the partial sums in order. Without atomics, the same input always gives the same bits. N and K may be any
numbers.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..dtype_names import short_name
from .aot.compile_case import CompileCase, example, recorded_case
from .device_functions import operand
from .hardware import multiprocessors
from .launch import ALIGNED_ELEMENTS, Cut, aligned, aligned_rows, fp32_precision, rows_contiguous, upcast
from .masked import COMPILED, COMPILED_SHAPES, compile_case, product_precision


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
    """Store the gradients of weight (masked or straight through) and scores, from dL/d(masked W)."""
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


@triton.jit(do_not_specialize=["M", "words_per_row", "tokens_per_split"])
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


@triton.jit(do_not_specialize=["splits", "words_per_row"])
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
    """Add the partial sums in order and store the gradients. Grid: (tiles of N, tiles of K)."""
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


# Cuts by precision of the products (see `masked.product_precision`).
WEIGHT_GRADIENT = {
    "half": Cut(64, 128, 128, 8, 3),
    "tf32": Cut(32, 64, 64, 4, 3),
    "ieee": Cut(32, 64, 32, 4, 3),
}
# With the cuts above, programs would spill that read rows of x value by value, and those with a wide
# epilogue, for float32 weights beside half-precision products or rows of dL/dy that are read value by value.
FEWER_REGISTERS = {
    "half": Cut(64, 128, 64, 8, 3),
    "tf32": Cut(32, 64, 64, 8, 3),
    "ieee": Cut(32, 64, 32, 4, 2),
}
# Shapes [N, K] to compile for: besides whole lines, TinyBERT's width, a vocabulary and a head of two classes.
SHAPES = (*COMPILED_SHAPES, (312, 312), (1200, 312), (30522, 768), (2, 768))
REDUCTION = {"BLOCK_N": 8, "BLOCK_K": 128}
REDUCTION_WARPS = 4
LEAST_TOKENS_PER_SPLIT = 512


def weight_gradient_cut(x: Tensor, weight: Tensor, precision: str, *, split: bool) -> Cut:
    """Return the cut of ``masked_weight_gradient``.

    Args:
        x: [M, K].
        weight: [N, K].
        precision: See ``masked.product_precision``.
        split: Programs store partial sums.
    """
    uneven_n, uneven_k = (size % ALIGNED_ELEMENTS != 0 for size in weight.shape)
    wide_epilogue = not split and (uneven_n or weight.dtype != x.dtype)
    return (FEWER_REGISTERS if uneven_k or wide_epilogue else WEIGHT_GRADIENT)[precision]


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
    """Return the gradients of the weight and of the scores.

    Args:
        gradient: dL/dy [M, N].
        x: [M, K].
        weight: [N, K].
        words: Packed mask of the weight.
        needs_weight: Compute the weight's gradient.
        straight_through: Leave the weight's gradient unmasked.
        scores_dtype: Dtype of the scores; None to skip their gradient.

    Returns:
        dweight [N, K] in the dtype of the weight, empty unless needed, and dscores [N, K] in
        ``scores_dtype``, empty if that is None.
    """
    (M, K), N = x.shape, weight.shape[0]
    rows = rows_contiguous if K % ALIGNED_ELEMENTS else aligned_rows
    gradient, x, weight, words = aligned(gradient), rows(x), rows(weight), aligned(words)
    dweight = weight.new_empty((N, K) if needs_weight else 0)
    dscores = weight.new_empty((N, K) if scores_dtype else 0, dtype=scores_dtype or weight.dtype)
    cut = weight_gradient_cut(x, weight, product_precision(x), split=True)
    tiles = triton.cdiv(N, cut.BLOCK_N) * triton.cdiv(K, cut.BLOCK_K)
    splits = max(1, min(multiprocessors(x.device) // tiles, M // LEAST_TOKENS_PER_SPLIT))
    if splits == 1:
        cut = weight_gradient_cut(x, weight, product_precision(x), split=False)
    partial = x.new_empty((splits, N, K) if splits > 1 else (0, N, K), dtype=torch.float32)
    epilogue = {
        "NEEDS_WEIGHT": needs_weight,
        "MASKED": not straight_through,
        "NEEDS_SCORES": scores_dtype is not None,
    }
    with torch.cuda.device_of(x):
        _launch(gradient, x, weight, words, dweight, dscores, partial, epilogue, cut, fp32_precision())
        if splits > 1:
            _launch_reduction(weight, words, dweight, dscores, partial, epilogue)
    return dweight, dscores


def _launch(
    gradient: Tensor,
    x: Tensor,
    weight: Tensor,
    words: Tensor,
    dweight: Tensor,
    dscores: Tensor,
    partial: Tensor,
    epilogue: dict[str, bool],
    cut: Cut,
    precision: str,
    kernel: Any = masked_weight_gradient,
) -> None:
    (M, K), N = x.shape, weight.shape[0]
    splits = max(1, partial.shape[0])
    tokens_per_split = triton.cdiv(triton.cdiv(M, splits), cut.BLOCK_M) * cut.BLOCK_M
    kernel[(triton.cdiv(N, cut.BLOCK_N) * triton.cdiv(K, cut.BLOCK_K), splits)](
        gradient, x, weight, words, dweight, dscores, partial,
        M, N, K, words.shape[1], x.stride(0), weight.stride(0), tokens_per_split,
        SPLIT=splits > 1, **epilogue, EVEN_N=N % cut.BLOCK_N == 0, EVEN_K=K % cut.BLOCK_K == 0,
        PRECISION=precision, UPCAST=upcast(x.dtype) or upcast(weight.dtype), **cut.launch,
    )  # fmt: skip


def _launch_reduction(
    weight: Tensor,
    words: Tensor,
    dweight: Tensor,
    dscores: Tensor,
    partial: Tensor,
    epilogue: dict[str, bool],
    kernel: Any = reduce_masked_weight_gradient,
) -> None:
    splits, N, K = partial.shape
    kernel[(triton.cdiv(N, REDUCTION["BLOCK_N"]), triton.cdiv(K, REDUCTION["BLOCK_K"]))](
        partial, weight, words, dweight, dscores, splits, N, K, words.shape[1], weight.stride(0),
        **epilogue, **REDUCTION, num_warps=REDUCTION_WARPS,
    )  # fmt: skip


def compile_cases() -> Iterator[CompileCase]:
    """Yield every kernel for each pair of dtypes; those of bfloat16 are the defaults."""
    epilogue = {"NEEDS_WEIGHT": True, "MASKED": True, "NEEDS_SCORES": True}
    for (x_dtype, weight_dtype, kind), shape in itertools.product(COMPILED, SHAPES):
        dtypes, precision, (N, K) = (x_dtype, weight_dtype), "tf32" if kind == "tf32" else "ieee", shape
        gradient, x, weight = (
            example(x_dtype, 4096, N),
            example(x_dtype, 4096, K),
            example(weight_dtype, N, K),
        )
        words, dscores = example(torch.int32, N, triton.cdiv(K, 32)), example(torch.float32, N, K)
        for splits in (0, 2):
            cut = weight_gradient_cut(x, weight, kind, split=splits > 0)
            product = cut.BLOCK_N, cut.BLOCK_K, cut.BLOCK_M
            partial = example(torch.float32, splits, N, K)
            tensors = gradient, x, weight, words, weight, dscores, partial
            launch = functools.partial(_launch, *tensors, epilogue, cut, precision)
            family = "masked dW" + (" split" if splits else "")
            yield compile_case(masked_weight_gradient, launch, family, dtypes, kind, cut, product, shape)
    for dtype, shape in itertools.product(dict.fromkeys(weight for _, weight, _ in COMPILED), SHAPES):
        (N, K), of_shape = shape, "" if shape == SHAPES[0] else f" {shape[0]}x{shape[1]}"
        weight, partial = example(dtype, N, K), example(torch.float32, 2, N, K)
        words, dscores = example(torch.int32, N, triton.cdiv(K, 32)), example(torch.float32, N, K)
        yield recorded_case(
            reduce_masked_weight_gradient,
            functools.partial(_launch_reduction, weight, words, weight, dscores, partial, epilogue),
            family="masked dW reduction",
            label=f"{REDUCTION['BLOCK_N']}x{REDUCTION['BLOCK_K']} weight {short_name(dtype)}{of_shape}",
            default=dtype != torch.float16,
        )
