"""Makers of tensors whose memory does not hold their values at an aligned address."""

from __future__ import annotations

import torch
from torch import Tensor


def negated(values: Tensor) -> Tensor:
    return torch._neg_view(-values)


def imaginary(values: Tensor) -> Tensor:
    return torch.complex(torch.zeros_like(values), -values).conj().imag


def misaligned(values: Tensor) -> Tensor:
    memory = bytearray(values.nbytes + 1)
    view = torch.frombuffer(memory, dtype=values.dtype, offset=1, count=values.numel()).view(values.shape)
    return view.copy_(values)


def zero(values: Tensor) -> Tensor:
    values.zero_()
    return torch._efficientzerotensor(values.shape, dtype=values.dtype)


SPECIAL = (negated, imaginary, misaligned, zero)
