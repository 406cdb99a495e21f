"""Bitmap-compressed weights: any mask, with one bit of index and a quarter bit of offsets per weight.

The format serves GPUs, where unstructured zeros save memory but no tensor-core work: each call decompresses
its layer into a scratch matrix and multiplies it with the dense library.
"""

from __future__ import annotations

from typing import Any, Self

import torch
from torch import Tensor

from sparsebert_kernels.bitmask import pack_bits, unpack_bits

from .base import GPU_DTYPES, TILE_COLUMNS, PackedWeight, checked, refuse_options

MAX_IN_FEATURES = 65536
MAX_KEPT = 2**31 - 1


class BitmapSparse(PackedWeight):
    """Kept weights in row order, and their positions as bits.

    Attributes:
        values: float32, bfloat16 or float16 (kept weights,); a single zero if nothing is kept.
        words: int32 (out_features, ceil(in_features / 32)); bit i of word w is column 32 w + i.
        offsets: int16 (out_features, ceil(in_features / 64)), read as unsigned; kept weights of the row
            before each tile of 64 columns.
        starts: int32 (out_features,); kept weights before the row.
    """

    name = "bitmap"
    TENSORS = ("values", "words", "offsets", "starts")
    GEOMETRY = ()

    words: Tensor
    offsets: Tensor
    starts: Tensor

    @classmethod
    def from_dense(cls, weight: Tensor, mask: Tensor | None = None, **options: Any) -> Self:
        """See ``PackedWeight.from_dense``; ``weight`` may also be float16.

        Raises:
            ValueError: The weight has more than 65536 columns, or the mask keeps more than 2^31 - 1 weights.
        """
        refuse_options(cls, options)
        weight, mask = checked(weight, mask, GPU_DTYPES)
        out_features, in_features = weight.shape
        if in_features > MAX_IN_FEATURES:
            raise ValueError(f"weight has {in_features} columns; a bitmap stores at most {MAX_IN_FEATURES}")
        tiles = -(-in_features // TILE_COLUMNS)
        padded = torch.nn.functional.pad(mask, (0, tiles * TILE_COLUMNS - in_features))
        counts = padded.view(out_features, tiles, TILE_COLUMNS).sum(-1)
        offsets = counts.cumsum(1) - counts
        ends = counts.sum(1).cumsum(0)
        kept = int(ends[-1])
        if kept > MAX_KEPT:
            raise ValueError(f"mask keeps {kept} weights; a bitmap stores at most {MAX_KEPT}")
        return cls(
            (out_features, in_features),
            {
                "values": weight[mask] if kept else weight.new_zeros(1),
                "words": pack_bits(mask),
                "offsets": offsets.int().to(torch.int16),
                "starts": (ends - counts.sum(1)).int(),
            },
            {},
        )

    def kept(self) -> Tensor:
        return unpack_bits(self.words, self.shape[1])

    def to_dense(self) -> Tensor:
        # Without `nonzero` or boolean indexing, which make the host wait for the GPU.
        kept = self.kept()
        place = kept.cumsum(1) - 1 + self.starts[:, None]
        return torch.where(
            kept, self.values[place.clamp_(0, self.values.numel() - 1)], self.values.new_zeros(())
        )
