"""Device functions that the Triton kernels share: program order, operands, activations and the epilogue."""

from __future__ import annotations

import triton
import triton.language as tl

from ..formats.base import TILE_COLUMNS

WIDTH = tl.constexpr(TILE_COLUMNS)  # columns of a packed tile, inside kernels


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
def activate(z, ACTIVATION: tl.constexpr):
    """Apply an activation in the dtype of z (float32); see ``reference.activate``.

    "gelu_erf" is the exact "gelu" in any dtype, for comparison alone.
    """
    if ACTIVATION == "relu":
        # Not tl.maximum, which turns NaN into 0.
        z = tl.where(z < 0, 0.0, z)
    elif ACTIVATION == "gelu" or ACTIVATION == "gelu_erf":
        z = 0.5 * z * (1.0 + tl.erf(z * 0.7071067811865476))
    elif ACTIVATION == "gelu_tanh":
        # 0.5 (1 + tanh(u)) = 1 / (1 + exp(-2 u))
        z = z / (1.0 + tl.exp(-1.5957691216057308 * (z + 0.044715 * z * z * z)))
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
    accumulator = activate(accumulator, ACTIVATION)
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
