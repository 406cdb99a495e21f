"""Read the matrices and biases of a model in float32 on the CPU, as input of the pruning methods."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from sparsebert.bert import resolve, weight_of

# The scores of a bias have the key of its matrix with this suffix.
BIAS = ".bias"


def loaded_weight(model: nn.Module, key: str) -> Tensor:
    """Return the weight of a matrix, detached. Raises ValueError if it is on the meta device."""
    weight = weight_of(model, key)
    if weight.is_meta:
        raise ValueError(f"{key} of {type(model).__name__} has no values: load its weights first")
    return weight.detach()


def read_matrix(model: nn.Module, key: str, mask: Tensor | None) -> Tensor:
    """Return a matrix as float32 [out, in] on the CPU, zero where ``mask`` (bool, True = keep) prunes it.

    Raises ValueError if a kept weight is NaN.
    """
    # Always on the CPU: sums over blocks round differently on other devices.
    matrix = loaded_weight(model, key).to("cpu", torch.float32)
    if mask is not None:
        matrix = matrix.masked_fill(~mask, 0)
    if torch.isnan(matrix).any():
        raise ValueError(f"{key}.weight of {type(model).__name__} holds NaN")
    return matrix


def read_biases(model: nn.Module, keys: Sequence[str]) -> dict[str, Tensor]:
    """Return ``<key>.bias`` -> float32 [1, out] on the CPU, for matrices with a bias.

    Raises ValueError if a bias is NaN.
    """
    parameters = {key: resolve(model, key)._parameters.get("bias") for key in keys}
    biases = {
        f"{key}{BIAS}": bias.detach().to("cpu", torch.float32)[None]
        for key, bias in parameters.items()
        if bias is not None
    }
    for name, bias in biases.items():
        if torch.isnan(bias).any():
            raise ValueError(f"{name} of {type(model).__name__} holds NaN")
    return biases
