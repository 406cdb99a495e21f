"""The precisions in which a layer may compute: its dtype's, and those below it that the caller tolerates."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sparsebert_kernels import formats
from sparsebert_kernels.errors import unknown
from sparsebert_kernels.formats import PackedWeight, RowPanelSparse

# Highest first. A tolerance is the lowest precision in which the caller lets layers compute.
PRECISIONS = ("fp32", "bf16", "int8")
LOWER_PRECISIONS, LOWEST = PRECISIONS[1:], PRECISIONS[-1]
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "int8": torch.int8}


def require_tolerance(tolerance: Any) -> None:
    """Raise ValueError unless ``tolerance`` is "fp32", "bf16" or "int8"."""
    if not isinstance(tolerance, str) or tolerance not in PRECISIONS:
        raise unknown("tolerance", tolerance, PRECISIONS)


def lower_precisions(dtype: torch.dtype, tolerance: str) -> tuple[str, ...]:
    """Return the precisions below ``dtype`` in which a layer of it may compute on a CPU, highest first.

    float16 counts as fp32, in which CPUs compute it. float64 layers compute in float64.
    """
    if dtype == torch.float64:
        return ()
    highest = PRECISIONS.index("bf16" if dtype == torch.bfloat16 else "fp32")
    return PRECISIONS[highest + 1 : PRECISIONS.index(tolerance) + 1]


def below_tolerance(format: str, precision: str) -> ValueError:
    """Return the error of a format that rounds to a precision below the tolerance."""
    return ValueError(f"format {format!r} rounds to {precision}: allow it with the tolerance {precision!r}")


def pack_as(
    weight: Tensor, mask: Tensor, stored: torch.dtype, *, format: str, **options: Any
) -> PackedWeight:
    """Return ``formats.pack`` of a weight [out, in] with values of the dtype ``stored``.

    Raises:
        ValueError: The format does not store this dtype, or as ``formats.pack``.
    """
    if format == RowPanelSparse.name:
        if stored == torch.float32:
            raise below_tolerance(format, "bf16")
        return formats.pack(weight, mask, format=format, dtype=stored, **options)
    if format in formats.INT8_FORMATS or stored == torch.int8:
        if format not in formats.INT8_FORMATS:
            raise ValueError(f"format {format!r} does not compute in int8")
        if stored != torch.int8:
            raise below_tolerance(format, "int8")
        return formats.pack(weight, mask, format=format, **options)
    return formats.pack(weight.to(stored), mask, format=format, **options)
