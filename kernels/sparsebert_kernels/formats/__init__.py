"""Packed weight formats: one class per file, with from_dense, to_dense, kept and nbytes."""

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
from .element_fp16 import ElementFp16
from .panel import PanelSparse
from .row_panel import RowPanelSparse
from .semi_structured import SemiStructured
from .vector import VectorSparse
from .vector_int8 import VectorInt8

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
        RowPanelSparse,
    )
}
# The formats that can store any mask in any dtype on any device.
ANY_MASK = tuple(name for name in FORMATS if name not in (SemiStructured.name, RowPanelSparse.name))
# Formats that round the weights to fp16 and compute in it: used only if named.
FP16_FORMATS: dict[str, type[PackedWeight]] = {ElementFp16.name: ElementFp16}
# Formats that round the weights to int8: used only if named, or for a tolerance that allows int8.
INT8_FORMATS: dict[str, type[PackedWeight]] = {VectorInt8.name: VectorInt8}


def pack(weight: Tensor, mask: Tensor | None = None, *, format: str, **options: Any) -> PackedWeight:
    """Pack a weight in the named format.

    Args:
        weight: [out, in] in float32 or bfloat16, or in float16 for formats with GPU kernels.
        mask: bool [out, in], True = keep; ``weight != 0`` by default.
        format: A name in ``FORMATS``, ``INT8_FORMATS`` or ``FP16_FORMATS``.
        options: Options of the format, e.g. ``vector_rows=4``.

    Raises:
        ValueError: The format or an option is unknown, or the mask does not fit the weight.
    """
    formats = {**FORMATS, **INT8_FORMATS, **FP16_FORMATS}
    if format not in formats:
        raise unknown("format", format, formats)
    return formats[format].from_dense(weight, mask, **options)


__all__ = [
    "ANY_MASK",
    "FORMATS",
    "FP16_FORMATS",
    "INT8_FORMATS",
    "BitmapSparse",
    "ColumnPanelSparse",
    "CompactDense",
    "CsrSparse",
    "DensePrepacked",
    "ElementFp16",
    "ElementSparse",
    "PackedWeight",
    "PanelSparse",
    "RowPanelSparse",
    "SemiStructured",
    "VectorInt8",
    "VectorSparse",
    "pack",
]
