"""A masked matrix with its bias, and the selection of its rows and columns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

# In a list of rows or columns, the index of a row or column of zeros whose mask keeps nothing.
EMPTY = -1


@dataclass(frozen=True, eq=False)
class Matrix:
    """The matrix of a linear layer that computes ``x @ kept().T + bias``.

    Attributes:
        weight: [out, in]; pruned weights may have any value and are never read.
        mask: Bool [out, in], True = keep.
        bias: [out], zero where pruned.
    """

    weight: Tensor
    mask: Tensor
    bias: Tensor

    @classmethod
    def of(cls, weight: Tensor, mask: Tensor, bias: Tensor | None, dead: Tensor | None) -> Matrix:
        """Wrap the tensors of a linear layer.

        Args:
            weight: [out, in].
            mask: Bool [out, in], True = keep.
            bias: [out]; None for a layer without bias.
            dead: Bool [out], True = bias pruned; None to keep all.
        """
        bias = weight.new_zeros(len(weight)) if bias is None else bias
        if dead is not None:
            bias = bias.masked_fill(dead.to(bias.device), 0)
        return cls(weight, mask.to(weight.device), bias)

    def kept(self) -> Tensor:
        """Return the weight [out, in] with zeros where it is pruned."""
        return torch.where(self.mask, self.weight, self.weight.new_zeros(()))

    def rows(self, index: Sequence[int]) -> Matrix:
        """Select rows (output features); ``EMPTY`` inserts a row of zeros with a bias of zero."""
        return Matrix(
            _select(self.weight, index, 0), _select(self.mask, index, 0), _select(self.bias, index, 0)
        )

    def columns(self, index: Sequence[int]) -> Matrix:
        """Select columns (input features); ``EMPTY`` inserts a column of zeros."""
        return Matrix(_select(self.weight, index, 1), _select(self.mask, index, 1), self.bias)

    def with_bias(self, added: Tensor) -> Matrix:
        """Add ``added`` [out] to the bias in float64, and round once."""
        return Matrix(self.weight, self.mask, exact(self.bias).add(added).to(self.bias))

    def with_row(self, row: int, weight: Tensor | None, bias: float) -> Matrix:
        """Replace row ``row`` by ``weight`` [in] (None for zeros) and ``bias``."""
        whole, mask, biases = self.weight.clone(), self.mask.clone(), self.bias.clone()
        whole[row] = 0 if weight is None else weight.to(whole)
        mask[row] = False if weight is None else (weight != 0).to(mask.device)
        biases[row] = bias
        return Matrix(whole, mask, biases)

    def with_column(self, column: int, weight: Tensor) -> Matrix:
        """Replace column ``column`` by ``weight`` [out]."""
        whole, mask = self.weight.clone(), self.mask.clone()
        whole[:, column] = weight.to(whole)
        mask[:, column] = (weight != 0).to(mask.device)
        return Matrix(whole, mask, self.bias)

    def times(self, columns: Tensor, x: Tensor) -> Tensor:
        """Return ``kept()[:, columns] @ x`` [out], in float64 on the CPU.

        Args:
            columns: Bool [in].
            x: One value per selected column.
        """
        return exact(self.columns(columns.nonzero().flatten().tolist()).kept()) @ exact(x)


def live_rows(mask: Tensor) -> Tensor:
    """Return which rows of a mask [out, in] keep a weight: bool [out]."""
    # On CPUs a maximum is much faster than `any`.
    return mask.view(torch.uint8).amax(1).bool()


def live_columns(mask: Tensor) -> Tensor:
    """Return which columns of a mask [out, in] keep a weight: bool [in]."""
    return mask.view(torch.uint8).amax(0).bool()


def live_features(source: Tensor, reader: Tensor) -> tuple[Tensor, Tensor]:
    """Find the live and the constant features between two matrices.

    A feature without inputs is constant: a neuron equals ``activation(bias)`` for every token, and a
    dimension of value equals its bias, which the average of attention does not change. A feature that no
    column of ``reader`` reads is neither live nor constant.

    Args:
        source: Mask [features, in].
        reader: Mask [out, features].

    Returns:
        The live features and the constant features, bool [features] each.
    """
    fed, read = live_rows(source), live_columns(reader)
    return fed & read, ~fed & read


def round_up(size: int, multiple: int, limit: int) -> int:
    """Round ``size``, at least 1, up to a multiple of ``multiple``, but not beyond ``limit``."""
    return min(limit, -(-max(size, 1) // multiple) * multiple)


def exact(tensor: Tensor) -> Tensor:
    """Convert to float64 on the CPU, so that folding rounds once, at its end."""
    return tensor.detach().to("cpu", torch.float64)


def _select(tensor: Tensor, index: Sequence[int], dim: int) -> Tensor:
    source = torch.tensor(index, dtype=torch.int64, device=tensor.device)
    selected = tensor.index_select(dim, source.clamp(min=0))
    selected[(slice(None),) * dim + (source == EMPTY,)] = 0
    return selected
