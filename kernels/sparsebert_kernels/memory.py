"""Tensors whose memory a kernel may read through a raw pointer."""

from __future__ import annotations

from torch import Tensor


def readable(tensor: Tensor) -> Tensor:
    """Return ``tensor``, or a copy of it if its memory does not hold its values at an aligned address.

    A negated view (the imaginary part of a conjugate) holds the values of opposite sign, and a zero tensor of
    autograd holds none.
    """
    address = tensor.data_ptr()
    if not address or address % tensor.itemsize or tensor.is_neg():
        return tensor.clone()
    return tensor
