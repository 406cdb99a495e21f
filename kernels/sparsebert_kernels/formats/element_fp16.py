"""Element-sparse weights in fp16, for AVX512-FP16: twice as many tokens an instruction as in fp32."""

from __future__ import annotations

from typing import Any, Self

import torch
from torch import Tensor

from .base import GPU_DTYPES, PackedWeight, checked, refuse_options
from .element import BLOCK_COLUMNS, BLOCK_ROWS, ElementSparse, check_block, pack_index

LARGEST = torch.finfo(torch.float16).max  # 65504


class ElementFp16(PackedWeight):
    """Kept weights one by one in fp16, each stored twice; the index is that of ``ElementSparse``.

    Sums are fp16 too. Where one leaves fp16's range, ``ops.linear`` computes the token again in fp32 and
    counts it in ``overflow``. The format cannot be trained.

    Attributes:
        values: float16 (stored + slack, 2).
        columns, rows, groups, blocks: See ``ElementSparse``.
        overflow: int32 (1,); tokens whose sums have left the range of fp16 in any call so far.
    """

    name = "element_fp16"
    TENSORS = ("values", "columns", "rows", "groups", "blocks", "overflow")
    GEOMETRY = ("block_rows", "block_columns")

    columns: Tensor
    rows: Tensor
    groups: Tensor
    blocks: Tensor
    overflow: Tensor
    block_rows: int
    block_columns: int

    @classmethod
    def from_dense(
        cls,
        weight: Tensor,
        mask: Tensor | None = None,
        *,
        block_rows: int = BLOCK_ROWS,
        block_columns: int = BLOCK_COLUMNS,
        **options: Any,
    ) -> Self:
        """See ``ElementSparse.from_dense``; ``weight`` may also be float16, and is rounded to it.

        Raises:
            ValueError: A block size is out of range, or a finite weight is beyond the range of fp16.
        """
        refuse_options(cls, options)
        weight, mask = checked(weight, mask, GPU_DTYPES)
        check_block(block_rows, block_columns)
        kept = _require_range(weight[mask])
        index, slots = pack_index(mask, 1, block_rows, block_columns)
        values = weight.new_zeros((index["columns"].numel(), 2), dtype=torch.float16)
        values[slots] = kept.half()[:, None]
        overflow = torch.zeros(1, dtype=torch.int32, device=weight.device)
        return cls(
            (weight.shape[0], weight.shape[1]),
            {"values": values, **index, "overflow": overflow},
            {"block_rows": block_rows, "block_columns": block_columns},
        )

    @classmethod
    def from_fp32(cls, packed: ElementSparse) -> Self:
        """Return weights packed in fp32 rounded to fp16; both share the index.

        Raises:
            ValueError: A finite weight is beyond the range of fp16.
        """
        values = _require_range(packed.values).half()[:, None].expand(-1, 2).contiguous()
        index = {name: getattr(packed, name) for name in ElementSparse.TENSORS[1:]}
        overflow = torch.zeros(1, dtype=torch.int32, device=packed.device)
        return cls(packed.shape, {"values": values, **index, "overflow": overflow}, packed.geometry())

    def in_fp32(self) -> ElementSparse:
        """Return the same weights in fp32."""
        index = {name: getattr(self, name) for name in ElementSparse.TENSORS[1:]}
        return ElementSparse(self.shape, {"values": self.values[:, 0].float(), **index}, self.geometry())

    def to_dense(self) -> Tensor:
        return self.in_fp32().to_dense().half()

    def kept(self) -> Tensor:
        return self.in_fp32().kept()


def _require_range(kept: Tensor) -> Tensor:
    """Return kept weights; raise ValueError for a finite one beyond the range of fp16."""
    beyond = kept.half().isinf() & kept.isfinite()
    if beyond.any():
        largest = float(kept[beyond].abs().max())
        raise ValueError(f"weight {largest:g} is beyond the range of fp16 (65504): use another format")
    return kept
