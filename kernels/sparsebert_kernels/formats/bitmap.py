"""Bitmap-compressed weights: any mask, one bit of index a weight and a quarter bit of offsets.

For a GPU, whose tensor cores have no use for unstructured zeros but whose memory has: a layer is decompressed
into a scratch matrix when it is its turn, and multiplied by the dense library.
"""

from __future__ import annotations

from typing import Any, Self

import torch
from torch import Tensor

from sparsebert_kernels.bitmask import pack_bits, unpack_bits

from .base import GPU_DTYPES, PackedWeight, checked, refuse_options

TILE_COLUMNS = 64
MAX_IN_FEATURES = 65536
MAX_KEPT = 2**31 - 1


class BitmapSparse(PackedWeight):
    """Kept weights in row order, and where they are.

    values   float32, bfloat16 or float16 (kept weights,)   a single zero where nothing is kept
    words    int32 (out_features, ceil(in_features / 32))   bit i of word w is column 32 w + i
    offsets  int16 (out_features, ceil(in_features / 64))   kept weights of the row before each tile of 64
             columns (read as unsigned)
    starts   int32 (out_features,)                          kept weights before the row
    """

    name = "bitmap"
    TENSORS = ("values", "words", "offsets", "starts")
    GEOMETRY = ()

    words: Tensor
    offsets: Tensor
    starts: Tensor

    @classmethod
    def from_dense(cls, weight: Tensor, mask: Tensor | None = None, **options: Any) -> Self:
        """See `PackedWeight.from_dense`; ``weight`` may be float16, too.

        Raises ValueError for more than 65536 columns or 2^31 - 1 kept weights.
        """
        refuse_options(cls, options)
        weight, mask = checked(weight, mask, GPU_DTYPES)
        out_features, in_features = weight.shape
        if in_features > MAX_IN_FEATURES:
            raise ValueError(f"weight has {in_features} columns; a bitmap has at most {MAX_IN_FEATURES}")
        tiles = -(-in_features // TILE_COLUMNS)
        padded = torch.nn.functional.pad(mask, (0, tiles * TILE_COLUMNS - in_features))
        counts = padded.view(out_features, tiles, TILE_COLUMNS).sum(-1)
        offsets = counts.cumsum(1) - counts
        ends = counts.sum(1).cumsum(0)
        kept = int(ends[-1])
        if kept > MAX_KEPT:
            raise ValueError(f"{kept} weights are kept; a bitmap has at most {MAX_KEPT}")
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
        # Without `nonzero` or boolean indexing: on a GPU those would make the host wait.
        kept = self.kept()
        place = kept.cumsum(1) - 1 + self.starts[:, None]
        return torch.where(
            kept, self.values[place.clamp_(0, self.values.numel() - 1)], self.values.new_zeros(())
        )
