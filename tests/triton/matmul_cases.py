"""A plain matrix product in configurations that compile well and ones that do not, to test ``aot`` with."""

from __future__ import annotations

from collections.abc import Iterator

import triton
import triton.language as tl

from sparsebert_kernels.cuda.aot.compile_case import CompileCase


@triton.jit
def matmul(
    x,  # (M, K)
    w,  # (N, K)
    y,  # (M, N)
    M,
    N,
    K,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """y = x @ w.T. Grid: (tiles of M, tiles of N)."""
    m = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    n = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    k = tl.arange(0, BLOCK_K)
    x_tile = x + tl.minimum(m, M - 1)[:, None] * K + k[None, :]
    w_tile = w + n[:, None] * K + k[None, :]
    sums = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for start in range(0, K, BLOCK_K):
        sums = tl.dot(
            tl.load(x_tile + start), tl.trans(tl.load(w_tile + start)), sums, input_precision="ieee"
        )
    tl.store(y + m[:, None] * N + n[None, :], sums.to(y.dtype.element_ty), mask=(m < M)[:, None])


@triton.jit
def copy(x, y, BLOCK: tl.constexpr):
    """y = x. Grid: (tiles,)."""
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(y + at, tl.load(x + at))


def product_case(
    label: str, product: tuple[int, int, int], kind: str = "*bf16", default: bool = True, warps: int = 4
) -> CompileCase:
    return CompileCase(
        family="matmul",
        label=label,
        kernel=matmul,
        arguments={"x": kind, "w": kind, "y": kind, "M": "i32", "N": "i32", "K": "i32"},
        constants=dict(zip(("BLOCK_M", "BLOCK_N", "BLOCK_K"), product, strict=True)),
        num_warps=warps,
        num_stages=3,
        aligned=("N", "K"),
        product=product,
        default=default,
    )


def compile_cases() -> Iterator[CompileCase]:
    yield product_case("good", (128, 64, 64))
    yield product_case("whole float32", (32, 32, 32), kind="*fp32")
    yield product_case("spilling", (128, 256, 32), default=False)
    yield product_case("too low", (32, 64, 64), default=False)
    yield product_case("too much shared memory", (128, 128, 256), default=False, warps=8)
    yield CompileCase("copy", "copy", copy, {"x": "*bf16", "y": "*bf16"}, {"BLOCK": 1024}, 4, 1)
    misnamed = {"x": "*bf16", "y": "*bf16"}
    yield CompileCase("copy", "misnamed", copy, misnamed, {"SIZE": 1024}, 4, 1, default=False)
