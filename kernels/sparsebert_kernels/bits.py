"""Masks packed one bit a weight, as the GPU kernels and the bitmap format read them."""

from __future__ import annotations

import torch
from torch import Tensor

WORD = 32


def pack_bits(mask: Tensor) -> Tensor:
    """``mask`` (bool [N, K], True = keep) as int32 words [N, ceil(K / 32)], on its device.

    Bit i of word w is column 32 w + i; bits past the last column are 0.
    """
    rows, columns = mask.shape
    words = -(-columns // WORD)
    octets = (
        torch.nn.functional.pad(mask, (0, words * WORD - columns)).view(rows, words * 4, 8).to(torch.uint8)
    )
    bits = torch.arange(8, dtype=torch.uint8, device=mask.device)
    return (octets << bits).sum(-1, dtype=torch.uint8).view(torch.int32)


def unpack_bits(words: Tensor, columns: int) -> Tensor:
    """The bool mask [N, columns] of `pack_bits`' words."""
    bits = torch.arange(WORD, dtype=torch.int32, device=words.device)
    return ((words[:, :, None] >> bits) & 1).bool().flatten(1)[:, :columns]
