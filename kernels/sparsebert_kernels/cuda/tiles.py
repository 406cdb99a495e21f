"""What the Triton kernels have in common: program order, epilogue, and how tensors reach a kernel."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

# Kernels may assume that addresses and row strides are multiples of 16 elements: 16-byte copies depend on it.
ALIGNED_ELEMENTS = 16
ALIGNED_BYTES = 16


@triton.jit
def grouped_program(program, token_tiles, panels, GROUP_M: tl.constexpr):
    """Token tile and place in the panel order of a program.

    GROUP_M token tiles pass all panels before the next ones begin: they stay in the L2 cache meanwhile.
    """
    width = GROUP_M * panels
    first = program // width * GROUP_M
    size = tl.minimum(token_tiles - first, GROUP_M)
    return first + program % width % size, program % width // size


@triton.jit
def operand(tile, UPCAST: tl.constexpr):
    """A tile as `tl.dot` takes it; the interpreter would compute on the bits of an unconverted bfloat16."""
    if UPCAST:
        tile = tile.to(tl.float32)
    return tile


@triton.jit
def activate(z, ACTIVATION: tl.constexpr):
    """The activation of that name, in the dtype of z (float32); see `reference.activate`."""
    if ACTIVATION == "relu":
        # Not tl.maximum, which turns NaN into 0.
        z = tl.where(z < 0, 0.0, z)
    elif ACTIVATION == "gelu":
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
    """output = activation(accumulator + bias) + residual; WHOLE promises that every column is below N."""
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


def interpreted() -> bool:
    """Whether kernels run in Triton's interpreter, on any device."""
    return bool(triton.knobs.runtime.interpret)


def upcast(dtype: torch.dtype) -> bool:
    """UPCAST for operands of that dtype."""
    return dtype == torch.bfloat16 and interpreted()


def dtype_name(dtype: torch.dtype) -> str:
    """E.g. "bfloat16", as configurations have it."""
    return str(dtype).removeprefix("torch.")


def precision() -> str:
    """Of fp32 products, as torch's own matmul has it: "ieee" unless TensorFloat-32 is allowed."""
    matmul = torch.backends.cuda.matmul
    allowed = matmul.fp32_precision == "tf32" if hasattr(matmul, "fp32_precision") else matmul.allow_tf32
    return "tf32" if allowed else "ieee"


def aligned_rows(matrix: Tensor, multiple: int = ALIGNED_ELEMENTS) -> Tensor:
    """``matrix`` [rows, columns] with rows that kernels may read up to a multiple of ``multiple`` columns.

    It is copied, with zeros after its last column, where its columns are not adjacent, its address or row
    stride is not aligned, or columns are missing.
    """
    rows, columns = matrix.shape
    multiple = max(multiple, ALIGNED_ELEMENTS)
    stride, step = matrix.stride()
    if (
        step == 1
        and stride >= columns
        and stride % ALIGNED_ELEMENTS == 0
        and columns % multiple == 0
        and matrix.data_ptr() % ALIGNED_BYTES == 0
    ):
        return matrix
    width = -(-columns // multiple) * multiple
    # Only the columns after the last one need zeros.
    copy = matrix.new_empty(rows, width)
    copy[:, :columns] = matrix
    copy[:, columns:] = 0
    return copy


def check_aligned(name: str, tensor: Tensor) -> None:
    """Raise ValueError unless kernels may read ``tensor`` with 16-byte loads."""
    if not tensor.is_contiguous() or tensor.data_ptr() % ALIGNED_BYTES:
        raise ValueError(
            f"{name} are a view of strides {tuple(tensor.stride())} at address {tensor.data_ptr():#x}; "
            f"kernels need a contiguous tensor at a multiple of {ALIGNED_BYTES}"
        )
