"""y = activation(x @ W.T + bias) + residual for a 2:4 weight, computed by torch's semi-structured tensors."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .. import reference
from ..formats.semi_structured import SemiStructured


def linear(
    x: Tensor, packed: SemiStructured, bias: Tensor | None, activation: str, residual: Tensor | None = None
) -> Tensor:
    """Return ``activation(x @ W.T + bias) + residual`` for x [..., in] in the dtype of W."""
    flat = x.reshape(-1, x.shape[-1])
    if not flat.shape[0]:
        return x.new_empty(*x.shape[:-1], packed.shape[0])
    # Not `reference.linear`: it calls `weight.to`, which a packed tensor may not support.
    bias = None if bias is None else bias.to(x.dtype)
    y = reference.activate(torch.nn.functional.linear(flat, packed.tensor(), bias), activation)
    y = y.reshape(*x.shape[:-1], packed.shape[0])
    return y if residual is None else y + residual


def input_gradient(gradient: Tensor, packed: SemiStructured, transposed: Sequence[Tensor]) -> Tensor:
    """Return gradient @ W [..., in] for gradient [..., out] in the dtype of W."""
    return gradient @ packed.to_dense()
