"""Row- and column-sparse weights: the live rectangle, stored as a dense matrix."""

from __future__ import annotations

from typing import Any, Self

import torch
from torch import Tensor

from .base import GPU_DTYPES, PackedWeight, checked, refuse_options
from .dense import DEFAULT_TOKENS, DensePrepacked, prepack


class CompactDense(PackedWeight):
    """Live rows x live columns, dense.

    Attributes:
        values: float32, bfloat16 or float16 [live rows, live columns], as in ``DensePrepacked``.
        live_rows: int64 (live rows,); rows that keep a weight.
        live_columns: int64 (live columns,); columns that keep a weight.
    """

    name = "compact"
    TENSORS = ("values", "live_rows", "live_columns")
    GEOMETRY = ()

    live_rows: Tensor
    live_columns: Tensor

    @classmethod
    def from_dense(
        cls, weight: Tensor, mask: Tensor | None = None, *, tokens: int = DEFAULT_TOKENS, **options: Any
    ) -> Self:
        """See ``PackedWeight.from_dense``; ``tokens`` as in ``DensePrepacked.from_dense``."""
        refuse_options(cls, options)
        weight, mask = checked(weight, mask, GPU_DTYPES)
        live_rows = mask.any(1).nonzero().squeeze(1)
        live_columns = mask.any(0).nonzero().squeeze(1)
        kept = torch.where(mask, weight, weight.new_zeros(()))
        live = kept[live_rows][:, live_columns].contiguous()
        tensors = {"values": prepack(live, tokens), "live_rows": live_rows, "live_columns": live_columns}
        return cls((weight.shape[0], weight.shape[1]), tensors, {})

    def rectangle(self) -> DensePrepacked:
        """Return the live rectangle as a dense packed weight."""
        shape = (self.live_rows.numel(), self.live_columns.numel())
        return DensePrepacked(shape, {"values": self.values}, {})

    def to_dense(self) -> Tensor:
        live = self.rectangle().to_dense()
        dense = live.new_zeros(self.shape)
        dense[self.live_rows[:, None], self.live_columns] = live
        return dense

    def kept(self) -> Tensor:
        return self.to_dense() != 0

    @property
    def nbytes(self) -> int:
        return self.rectangle().nbytes + self.live_rows.nbytes + self.live_columns.nbytes
