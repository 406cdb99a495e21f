"""Every operator in plain torch: the reference of the tests and the path without the native library."""

from __future__ import annotations

import torch
from torch import Tensor

from sparsebert_kernels.errors import unknown

ACTIVATIONS = ("none", "relu", "gelu", "gelu_tanh", "tanh")


def activate(z: Tensor, activation: str) -> Tensor:
    """Apply an activation; ``gelu`` is the erf form, ``gelu_tanh`` the tanh approximation."""
    match activation:
        case "none":
            return z
        case "relu":
            return torch.nn.functional.relu(z)
        case "gelu":
            return torch.nn.functional.gelu(z)
        case "gelu_tanh":
            return torch.nn.functional.gelu(z, approximate="tanh")
        case "tanh":
            return torch.tanh(z)
    raise unknown("activation", activation, ACTIVATIONS)


def activate_backward(gradient: Tensor, z: Tensor, activation: str) -> Tensor:
    """Return dL/dz from dL/d(activate(z))."""
    if activation == "none":
        return gradient
    if activation == "relu":
        return torch.where(z > 0, gradient, gradient.new_zeros(()))
    if activation == "tanh":
        return torch.ops.aten.tanh_backward(gradient, torch.tanh(z))
    approximate = "tanh" if activation == "gelu_tanh" else "none"
    return torch.ops.aten.gelu_backward(gradient, z, approximate=approximate)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None, activation: str = "none") -> Tensor:
    """Return ``activate(x @ weight.T + bias)`` in the dtype of x, for x [..., in] and weight [out, in]."""
    bias = None if bias is None else bias.to(x.dtype)
    return activate(torch.nn.functional.linear(plain_rows(x), weight.to(x.dtype), bias), activation)


def plain_rows(x: Tensor) -> Tensor:
    """Return x, or a copy of it if it is half-precision on a CPU and has strides.

    oneDNN may read past the end of such a row: torch 2.13 returns NaN for some bfloat16 x with odd strides.
    """
    return x.contiguous() if x.is_cpu and x.dtype in (torch.bfloat16, torch.float16) else x


def csr_linear(x: Tensor, weight: Tensor, bias: Tensor | None, activation: str = "none") -> Tensor:
    """Return ``linear``, as W @ x.T, for a ``torch.sparse_csr`` weight [out, in] and x [tokens, in]."""
    out = weight @ x.t()
    if bias is not None:
        out += bias.to(x.dtype)[:, None]
    return activate(out.t().contiguous(), activation)


def values_gradient(gradient: Tensor, x: Tensor, row: Tensor, column: Tensor) -> Tensor:
    """Return dW at (row, column) in fp32: gradient [tokens, out] times x [tokens, in], summed over tokens."""
    dense = gradient.t().float() @ x.float()
    return dense[row, column]
