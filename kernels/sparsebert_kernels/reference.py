"""Every operator in plain torch: the oracle of the tests and the path without the native library."""

from __future__ import annotations

import torch
from torch import Tensor

from sparsebert_kernels.errors import unknown

ACTIVATIONS = ("none", "relu", "gelu", "gelu_tanh", "tanh")


def activate(z: Tensor, activation: str) -> Tensor:
    """The activation of that name; ``gelu`` is the erf form, ``gelu_tanh`` the tanh approximation."""
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
    """dL/dz from dL/d(activate(z))."""
    if activation == "none":
        return gradient
    if activation == "relu":
        return torch.where(z > 0, gradient, gradient.new_zeros(()))
    if activation == "tanh":
        return torch.ops.aten.tanh_backward(gradient, torch.tanh(z))
    approximate = "tanh" if activation == "gelu_tanh" else "none"
    return torch.ops.aten.gelu_backward(gradient, z, approximate=approximate)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None, activation: str = "none") -> Tensor:
    """``activate(x @ weight.T + bias)`` for x [..., in] and a dense weight [out, in], in the dtype of x."""
    bias = None if bias is None else bias.to(x.dtype)
    return activate(torch.nn.functional.linear(x, weight.to(x.dtype), bias), activation)


def csr_linear(x: Tensor, weight: Tensor, bias: Tensor | None, activation: str = "none") -> Tensor:
    """`linear` for a ``torch.sparse_csr`` weight [out, in] and x [tokens, in]: W @ x.T, as MKL likes it."""
    out = weight @ x.t()
    if bias is not None:
        out += bias.to(x.dtype)[:, None]
    return activate(out.t().contiguous(), activation)


def values_gradient(gradient: Tensor, x: Tensor, row: Tensor, column: Tensor) -> Tensor:
    """dW at (row, column): sum over tokens of gradient [tokens, out] times x [tokens, in], in fp32."""
    dense = gradient.t().float() @ x.float()
    return dense[row, column]
