"""The bit codec of stored masks: one bit a weight in row-major order, as ``numpy.packbits`` packs them.

The first weight is the highest bit of the first byte, True = keep, and the last byte is padded with zeros.
Ticket files, saved sparse layers and SMP's ``.npy`` files all store their masks in this layout. The kernels
read another one, words of 32 columns (``sparsebert_kernels.bitmask``).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor


def packed_bytes(shape: Sequence[int]) -> int:
    """Return the size of a packed mask of this shape: ceil(weights / 8)."""
    return -(-math.prod(shape) // 8)


def pack_bits(mask: Tensor) -> Tensor:
    """Pack a bool mask of any shape into uint8 [ceil(weights / 8)], on the mask's device."""
    return torch.from_numpy(np.packbits(mask.cpu().numpy())).to(mask.device)


def unpack_bits(bits: Tensor | np.ndarray, shape: Sequence[int], name: str = "the mask") -> Tensor:
    """Unpack the bits that :func:`pack_bits` packed.

    Args:
        bits: uint8 [ceil(weights / 8)].
        shape: The mask's shape.
        name: Name of the mask in error messages.

    Returns:
        A bool tensor of ``shape``, on the device of ``bits``.

    Raises:
        ValueError: ``bits`` has another dtype or size, or bits are set beyond the last weight.
    """
    octets = bits.cpu().numpy() if isinstance(bits, Tensor) else bits
    if octets.dtype != np.uint8 or octets.shape != (packed_bytes(shape),):
        raise ValueError(
            f"{name} is packed as {octets.dtype} {list(octets.shape)}; "
            f"a mask of shape {list(shape)} needs uint8 [{packed_bytes(shape)}]"
        )
    weights = math.prod(shape)
    if weights % 8 and octets[-1] & (0xFF >> weights % 8):
        raise ValueError(f"{name} has bits set beyond its last weight")
    mask = torch.from_numpy(np.unpackbits(octets, count=weights).view(np.bool_).reshape(shape))
    return mask.to(bits.device) if isinstance(bits, Tensor) else mask
