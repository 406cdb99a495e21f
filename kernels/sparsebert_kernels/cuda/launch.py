"""Shared parts of the Triton launchers: block sizes, precision, and the layout of tensors."""

from __future__ import annotations

import functools
from dataclasses import asdict, dataclass
from typing import Any

import torch
import triton
from torch import Tensor

# Kernels assume that addresses and row strides are multiples of 16 elements, which 16-byte copies require.
ALIGNED_ELEMENTS = 16
ALIGNED_BYTES = 16
# Returns `torch.backends.cuda.matmul.fp32_precision` in a fifth of its time. Older torch lacks both.
_precision_of: Any = getattr(torch._C, "_get_fp32_precision_getter", None)


@dataclass(frozen=True)
class Cut:
    """The cut of a product into programs: tokens, rows and columns of W per program or per step."""

    BLOCK_M: int
    BLOCK_N: int
    BLOCK_K: int
    num_warps: int
    num_stages: int

    @functools.cached_property
    def launch(self) -> dict[str, int]:
        """All fields, as keyword arguments of a launch."""
        return asdict(self)

    def __str__(self) -> str:
        return f"{self.BLOCK_M}x{self.BLOCK_N}x{self.BLOCK_K} w{self.num_warps} s{self.num_stages}"


def interpreted() -> bool:
    """Return whether kernels run in Triton's interpreter."""
    return bool(triton.knobs.runtime.interpret)


def upcast(dtype: torch.dtype) -> bool:
    """Return whether to upcast operands of this dtype: the interpreter multiplies bfloat16 in float32."""
    return dtype == torch.bfloat16 and interpreted()


def dtype_name(dtype: torch.dtype) -> str:
    """Return the name of a dtype in configuration files, e.g. "bfloat16"."""
    return str(dtype).removeprefix("torch.")


def fp32_precision() -> str:
    """Return the precision of float32 products as set for torch's own matmul, "ieee" or "tf32"."""
    if _precision_of is None:
        allowed = torch.backends.cuda.matmul.allow_tf32
    else:
        allowed = _precision_of("cuda", "matmul") == "tf32"
    return "tf32" if allowed else "ieee"


def rows_contiguous(matrix: Tensor) -> Tensor:
    """Return ``matrix`` with adjacent columns and rows that do not overlap, copied if need be."""
    row, column = matrix.stride()
    return matrix if column == 1 and row >= matrix.shape[1] else matrix.contiguous()


def aligned_rows(matrix: Tensor, multiple: int = ALIGNED_ELEMENTS) -> Tensor:
    """Return ``matrix`` [rows, columns], readable up to a multiple of ``multiple`` columns.

    The matrix is copied, with zeros after its last column, if its columns are not adjacent, its address or
    row stride is not aligned, or columns are missing.
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
    # Only the added columns need zeros.
    copy = matrix.new_empty(rows, width)
    copy[:, :columns] = matrix
    copy[:, columns:] = 0
    return copy


def aligned(tensor: Tensor) -> Tensor:
    """Return ``tensor`` contiguous and readable with 16-byte loads, copied if need be."""
    tensor = tensor.contiguous()
    return tensor.clone() if tensor.data_ptr() % ALIGNED_BYTES else tensor


def check_aligned(name: str, tensor: Tensor) -> None:
    """Raise ValueError unless kernels may read ``tensor`` with 16-byte loads."""
    if not tensor.is_contiguous() or tensor.data_ptr() % ALIGNED_BYTES:
        raise ValueError(
            f"{name} have strides {tuple(tensor.stride())} and address {tensor.data_ptr():#x}; "
            f"copy them to a contiguous tensor whose address is a multiple of {ALIGNED_BYTES}"
        )
