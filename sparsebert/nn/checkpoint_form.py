"""The checkpoint form of a sparse matrix: mask bits and kept weights, the same for every device."""

from __future__ import annotations

import torch
from torch import Tensor

from sparsebert.tickets.bits import pack_bits

# Names of the two tensors that replace ``weight`` in a checkpoint.
BITS, VALUES = "weight_bits", "weight_values"


def to_stored(weight: Tensor, mask: Tensor) -> dict[str, Tensor]:
    """Convert a matrix [out, in] and its mask (bool, True = keep) to checkpoint form, on the weight's device.

    Returns:
        ``weight_bits``, uint8 [ceil(out * in / 8)]: the mask as ``sparsebert.tickets.bits`` packs it; and
        ``weight_values`` [kept], the kept weights in row order and in the weight's dtype.
    """
    return {BITS: pack_bits(mask).to(weight.device), VALUES: weight.detach()[mask]}


def stored_weight(values: Tensor, mask: Tensor) -> Tensor:
    """Return the dense matrix [out, in] of the kept ``values`` [kept], with zeros where pruned.

    Raises:
        ValueError: The number of values differs from the number of weights that ``mask`` keeps.
    """
    kept = int(torch.count_nonzero(mask))
    if list(values.shape) != [kept]:
        raise ValueError(f"the mask keeps {kept} weights, but the values have shape {list(values.shape)}")
    weight = values.new_zeros(mask.shape)
    weight[mask] = values.detach()
    return weight
