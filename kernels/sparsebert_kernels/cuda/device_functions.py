"""Device functions that the Triton kernels share: program order, operands, activations and the epilogue."""

from __future__ import annotations

import math

import triton
import triton.language as tl

from ..formats.base import TILE_COLUMNS
from . import gelu_polynomial

WIDTH = tl.constexpr(TILE_COLUMNS)  # columns of a packed tile, inside kernels
GELU = tl.constexpr(gelu_polynomial.COEFFICIENTS)
GELU_TERMS = tl.constexpr(len(gelu_polynomial.COEFFICIENTS))
GELU_LARGEST = tl.constexpr(gelu_polynomial.LARGEST)
# -2 log2(e) u = z (TANH_LINEAR + TANH_CUBIC z^2), where u = sqrt(2 / pi) (z + 0.044715 z^3)
TANH_LINEAR = tl.constexpr(-2 * math.log2(math.e) * math.sqrt(2 / math.pi))
TANH_CUBIC = tl.constexpr(0.044715 * -2 * math.log2(math.e) * math.sqrt(2 / math.pi))


@triton.jit
def grouped_program(program, token_tiles, panels, GROUP_M: tl.constexpr):
    """Return the token tile of a program and its position in the order of panels.

    GROUP_M token tiles pass all panels before the next group begins, so that they stay in the L2 cache.
    """
    width = GROUP_M * panels
    first = program // width * GROUP_M
    size = tl.minimum(token_tiles - first, GROUP_M)
    return first + program % width % size, program % width // size


@triton.jit
def operand(tile, UPCAST: tl.constexpr):
    """Return an operand of ``tl.dot``, upcast for the interpreter, which multiplies raw bf16 bits."""
    if UPCAST:
        tile = tile.to(tl.float32)
    return tile


@triton.jit
def gelu_from_polynomial(z):
    """Return GELU (the erf form) for a result in half precision; see ``gelu_polynomial``."""
    # The minimum keeps NaN, which the maximum then drops.
    a = tl.minimum(tl.abs(z), GELU_LARGEST, propagate_nan=tl.PropagateNan.ALL)
    p = tl.fma(a, GELU[0], GELU[1])
    for term in tl.static_range(2, GELU_TERMS):
        p = tl.fma(p, a, GELU[term])
    # Times -1, which becomes a sign of the operand; Triton's -a is a subtraction from 0.
    return tl.fma(a * -1.0, tl.exp2(p), tl.maximum(z, 0.0))


@triton.jit
def activate(z, ACTIVATION: tl.constexpr, EXACT: tl.constexpr):
    """Apply an activation in the dtype of z (float32); see ``reference.activate``.

    Unless EXACT, the result is right to one unit in the last place of bfloat16 and float16, in fewer
    instructions: up to 11 for an element. "gelu_erf" is the exact "gelu" in any dtype, for comparison alone.
    """
    if ACTIVATION == "relu":
        # Unless told otherwise, the maximum turns NaN into 0.
        z = tl.maximum(z, 0.0, propagate_nan=tl.PropagateNan.ALL)
    elif ACTIVATION == "gelu" or ACTIVATION == "gelu_erf":
        z = (
            0.5 * z * (1.0 + tl.erf(z * 0.7071067811865476))
            if EXACT or ACTIVATION == "gelu_erf"
            else gelu_from_polynomial(z)
        )
    elif ACTIVATION == "gelu_tanh":
        # 0.5 (1 + tanh(u)) = 1 / (1 + exp(-2 u))
        if EXACT:
            z = z / (1.0 + tl.exp(-1.5957691216057308 * (z + 0.044715 * z * z * z)))
        else:
            # The hardware's tanh has an error of 2^-11: too much for large z, and for the small results below
            # 0. A division takes five instructions, the square of a reciprocal square root three.
            t = z * tl.fma(z * z, TANH_CUBIC, TANH_LINEAR)
            root = tl.rsqrt(1.0 + tl.exp2(t))
            z = z * root * root
    elif ACTIVATION == "tanh":
        t = tl.exp(-2.0 * tl.abs(z))
        magnitude = (1.0 - t) / (1.0 + t)
        z = tl.where(z < 0, -magnitude, magnitude)
    return z


@triton.jit
def store_output(
    accumulator,  # [BLOCK_M, H] fp32
    rows,  # [BLOCK_M] tokens
    columns,  # [H] output features
    bias,  # (N,) any floating-point dtype, or None
    residual,  # (M, N) or None
    output,  # (M, N)
    M,
    N,
    residual_stride,
    output_stride,
    ACTIVATION: tl.constexpr,
    WHOLE: tl.constexpr,
    UPCAST: tl.constexpr,
):
    """output = activation(accumulator + bias) + residual; WHOLE: every column is below N."""
    inside = columns < N
    if bias is not None:
        shift = tl.load(bias + columns) if WHOLE else tl.load(bias + columns, mask=inside, other=0.0)
        accumulator += shift.to(tl.float32)[None, :]
    accumulator = activate(accumulator, ACTIVATION, output.dtype.element_ty == tl.float32)
    mask = (rows < M)[:, None]
    if not WHOLE:
        mask = mask & inside[None, :]
    tokens = rows.to(tl.int64)[:, None]
    if residual is not None:
        added = tl.load(residual + tokens * residual_stride + columns[None, :], mask=mask, other=0.0)
        accumulator += added.to(tl.float32)
    tl.store(
        output + tokens * output_stride + columns[None, :], accumulator.to(output.dtype.element_ty), mask=mask
    )
