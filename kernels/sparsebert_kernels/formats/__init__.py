"""Packed weight formats: one class a file, each with from_dense, to_dense, kept and nbytes."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from sparsebert_kernels.errors import unknown

from .base import PackedWeight
from .bitmap import BitmapSparse
from .column_panel import ColumnPanelSparse
from .compact import CompactDense
from .csr import CsrSparse
from .dense import DensePrepacked
from .element import ElementSparse
from .panel import PanelSparse
from .semi_structured import SemiStructured
from .vector import VectorSparse

FORMATS: dict[str, type[PackedWeight]] = {
    cls.name: cls
    for cls in (
        ElementSparse,
        VectorSparse,
        CompactDense,
        DensePrepacked,
        CsrSparse,
        PanelSparse,
        BitmapSparse,
        ColumnPanelSparse,
        SemiStructured,
    )
}
# The formats that hold any mask on any device.
ANY_MASK = tuple(name for name in FORMATS if name != SemiStructured.name)


def pack(weight: Tensor, mask: Tensor | None = None, *, format: str, **options: Any) -> PackedWeight:
    """Pack ``weight`` [out, in] in the format of that name: float32 or bfloat16, in those for GPUs
    float16 too.

    ``mask`` (bool [out, in], True = keep) defaults to ``weight != 0``. Options are the format's own, e.g.
    ``vector_rows=4``. Raises ValueError for an unknown format or option and for a mask that does not fit.
    """
    if format not in FORMATS:
        raise unknown("format", format, FORMATS)
    return FORMATS[format].from_dense(weight, mask, **options)


__all__ = [
    "ANY_MASK",
    "FORMATS",
    "BitmapSparse",
    "ColumnPanelSparse",
    "CompactDense",
    "CsrSparse",
    "DensePrepacked",
    "ElementSparse",
    "PackedWeight",
    "PanelSparse",
    "SemiStructured",
    "VectorSparse",
    "pack",
]
