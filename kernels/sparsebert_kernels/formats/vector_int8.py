"""Column vectors in int8: V consecutive rows share their columns, four kept columns a unit.

The int8 units of CPUs add the products of four bytes in one instruction, so the kernels take kept columns in
fours. A mask that keeps everything makes the dense int8 layer of the same kernels.
"""

from __future__ import annotations

from typing import Any, Self

import torch
from torch import Tensor

from sparsebert_kernels import quantization

from .base import GPU_DTYPES, SLACK_BYTES, PackedWeight, checked, refuse_options
from .vector import VECTOR_ROWS

UNIT_COLUMNS = 4
# Sums of products of bytes stay below 2^31.
MAX_COLUMNS = 65536


class VectorInt8(PackedWeight):
    """Kept V x 1 vectors in int8. A vector is kept if any of its weights is; its pruned weights are zeros.

    A vector row is V rows of W; its kept columns are padded to a multiple of four with zero weights at its
    last column. ``to_dense`` returns the weights that the integers stand for, in float32. The format cannot
    be trained; gradients of x are those of the dequantized weight.

    Attributes:
        values: int8 (units + slack, V, 4).
        columns: int16 (units + slack, 4), read as unsigned.
        starts: int32 (vector rows + 1,); first unit of each vector row.
        scales: float32 (vector rows * V,) of the rows; 0 past the last row.
        sums: int32 (vector rows * V,) of each row's values.
        limit: float32 (1,), the calibrated limit of the input; (0,) for a scale of each token.
    """

    name = "vector_int8"
    TENSORS = ("values", "columns", "starts", "scales", "sums", "limit")
    GEOMETRY = ("vector_rows", "aligned")

    columns: Tensor
    starts: Tensor
    scales: Tensor
    sums: Tensor
    limit: Tensor
    vector_rows: int
    aligned: bool  # whether every stored weight is kept

    @classmethod
    def from_dense(
        cls,
        weight: Tensor,
        mask: Tensor | None = None,
        *,
        vector_rows: int = 4,
        limit: float | None = None,
        **options: Any,
    ) -> Self:
        """See ``PackedWeight.from_dense``; ``weight`` may also be float16.

        Args:
            weight: [out, in].
            mask: bool [out, in].
            vector_rows: V, 2, 4 or 8.
            limit: Largest magnitude of the input, from ``quantization.observe_limits``: one scale for all
                tokens. None for a scale of each token.

        Raises:
            ValueError: ``vector_rows`` is not supported, a kept weight is NaN or infinite, the matrix has too
                many columns, or the limit is not a positive finite number.
        """
        refuse_options(cls, options)
        weight, mask = checked(weight, mask, GPU_DTYPES)
        if vector_rows not in VECTOR_ROWS:
            raise ValueError(f"vector_rows must be 2, 4 or 8, got {vector_rows}")
        out_features, in_features = weight.shape
        if in_features > MAX_COLUMNS:
            raise ValueError(f"weight has {in_features} columns; this format stores at most {MAX_COLUMNS}")
        limits = [] if limit is None else [quantization.checked_limit(limit)]
        stored = quantization.quantize_rows(torch.where(mask, weight, weight.new_zeros(())))

        count = -(-out_features // vector_rows)  # of vector rows
        padding = count * vector_rows - out_features
        tall = torch.nn.functional.pad(stored.values, (0, 0, 0, padding)).view(
            count, vector_rows, in_features
        )
        live = torch.nn.functional.pad(mask, (0, 0, 0, padding)).view(count, vector_rows, in_features).any(1)
        vector_row, column = live.nonzero(as_tuple=True)

        kept = live.sum(1)
        units = (kept + (UNIT_COLUMNS - 1)) // UNIT_COLUMNS
        starts = torch.zeros(count + 1, dtype=torch.int64, device=weight.device)
        starts[1:] = units.cumsum(0)
        slots = torch.repeat_interleave(starts[:-1] * UNIT_COLUMNS - (kept.cumsum(0) - kept), kept)
        slots += torch.arange(slots.numel(), device=weight.device)
        places = int(starts[-1]) * UNIT_COLUMNS

        columns = torch.zeros(places + SLACK_BYTES // 2, dtype=torch.int32, device=weight.device)
        ends = torch.cat([torch.zeros_like(kept[:1]), kept.cumsum(0)])[1:]
        last = column[ends[kept > 0] - 1]
        columns[:places] = torch.repeat_interleave(last, units[kept > 0] * UNIT_COLUMNS).int()
        columns[slots] = column.int()
        values = stored.values.new_zeros(places + SLACK_BYTES // 2, vector_rows)
        values[slots] = tall[vector_row, :, column]
        return cls(
            (out_features, in_features),
            {
                "values": values.view(-1, UNIT_COLUMNS, vector_rows).transpose(1, 2).contiguous(),
                "columns": columns.to(torch.int16).view(-1, UNIT_COLUMNS),
                "starts": starts.int(),
                "scales": torch.nn.functional.pad(stored.scales, (0, padding)),
                "sums": tall.int().sum(2).int().view(-1),
                "limit": torch.tensor(limits, dtype=torch.float32, device=weight.device),
            },
            {
                "vector_rows": vector_rows,
                "aligned": torch.equal(live.repeat_interleave(vector_rows, 0)[:out_features], mask),
            },
        )

    def quantized(self) -> quantization.Quantized:
        """Return the integers [out, in] and the scales [out] that the format stores."""
        row, column = self._coordinates()
        dense = torch.zeros(
            self.starts.numel() - 1, self.shape[1], self.vector_rows, dtype=torch.int32, device=self.device
        )
        places = self.values.transpose(1, 2).reshape(-1, self.vector_rows)[: row.numel()]
        # Padding adds zero to a column that is stored already.
        dense.index_put_((row, column), places.int(), accumulate=True)
        values = dense.transpose(1, 2).reshape(-1, self.shape[1])[: self.shape[0]]
        return quantization.Quantized(values.to(torch.int8), self.scales[: self.shape[0]])

    def _coordinates(self) -> tuple[Tensor, Tensor]:
        """Return vector row and column (int64) of every place, without slack."""
        counts = torch.diff(self.starts.long()) * UNIT_COLUMNS
        row = torch.repeat_interleave(torch.arange(counts.numel(), device=self.device), counts)
        # `columns` may have been replaced by its bytes.
        columns = self.columns.reshape(-1).view(torch.int16)
        return row, columns[: row.numel()].long() & 0xFFFF

    def to_dense(self) -> Tensor:
        return self.quantized().dequantized()

    def kept(self) -> Tensor:
        """See ``PackedWeight.kept``; unless ``aligned``, a weight that is rounded to 0 counts as pruned."""
        if not self.aligned:
            return self.quantized().values != 0
        row, column = self._coordinates()
        live = torch.zeros(self.starts.numel() - 1, self.shape[1], dtype=torch.bool, device=self.device)
        live[row, column] = True
        return live.repeat_interleave(self.vector_rows, 0)[: self.shape[0]]
