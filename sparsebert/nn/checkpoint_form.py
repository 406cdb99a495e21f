"""How a sparse matrix lies on disk: one bit a weight, and the kept weights in row order, for any device."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

# What takes the place of ``weight`` in the names of a checkpoint.
BITS, VALUES = "weight_bits", "weight_values"


def stored_bytes(shape: tuple[int, int]) -> int:
    """Bytes of the mask of a matrix [out, in]."""
    return -(-math.prod(shape) // 8)


def to_stored(weight: Tensor, mask: Tensor) -> dict[str, Tensor]:
    """A matrix [out, in] and its mask (bool, True = keep) as they are stored, on the weight's device.

    weight_bits    uint8 [ceil(out * in / 8)]   row by row, the first weight in the highest bit
                   (``numpy.packbits``); the last byte is filled up with zeros
    weight_values  [kept]   in row order, in the weight's dtype
    """
    bits = torch.from_numpy(np.packbits(mask.cpu().numpy()))
    return {BITS: bits.to(weight.device), VALUES: weight.detach()[mask]}


def stored_mask(bits: Tensor, shape: tuple[int, int]) -> Tensor:
    """The mask (bool [out, in]) of stored bits, on their device.

    Raises ValueError for a number of bytes that is not that of the shape, and bits beyond the last weight.
    """
    count = math.prod(shape)
    if bits.dtype != torch.uint8 or list(bits.shape) != [stored_bytes(shape)]:
        raise ValueError(
            f"its mask is {list(bits.shape)} of {bits.dtype}, "
            f"{list(shape)} needs [{stored_bytes(shape)}] of torch.uint8"
        )
    octets = bits.cpu().numpy()
    if count % 8 and octets[-1] & (0xFF >> count % 8):
        raise ValueError("its mask has bits set beyond the last weight")
    mask = np.unpackbits(octets, count=count).view(np.bool_).reshape(shape)
    return torch.from_numpy(mask).to(bits.device)


def stored_weight(values: Tensor, mask: Tensor) -> Tensor:
    """The dense matrix [out, in], zeros where pruned. ValueError unless each kept weight has a value."""
    kept = int(torch.count_nonzero(mask))
    if list(values.shape) != [kept]:
        raise ValueError(f"its mask keeps {kept} weights, and there are values for {list(values.shape)}")
    weight = values.new_zeros(mask.shape)
    weight[mask] = values.detach()
    return weight
