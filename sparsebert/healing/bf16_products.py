"""Matrix products in bf16 where the CPU has instructions for them, everything else in fp32."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sparsebert_kernels.cpu import native


def suits(device: torch.device) -> bool:
    """Whether products of bf16 are faster than those of fp32 on this device."""
    if device.type == "cpu":
        return native.has_bf16_products()
    return device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)


@contextlib.contextmanager
def bf16_products(linears: Iterable[nn.Linear]) -> Iterator[None]:
    """Compute the products of these layers in bf16, forward and backward, while the block runs.

    Weights, gradients, and everything between the layers stay fp32: torch's autocast would also compute
    attention in bf16, whose backward pass is slower on a CPU than in fp32.
    """
    layers = list(linears)
    for layer in layers:
        layer.forward = partial(_forward, layer)  # type: ignore[method-assign]
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward


def _forward(layer: nn.Linear, x: Tensor) -> Tensor:
    bias = None if layer.bias is None else layer.bias.bfloat16()
    return F.linear(x.bfloat16(), layer.weight.bfloat16(), bias).float()
