"""A masked matrix with its bias, and the taking of rows and columns that all rules come down to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

# In lists of rows or columns: one of zeros, whose mask keeps nothing.
EMPTY = -1


@dataclass(frozen=True, eq=False)
class Matrix:
    """``x @ kept().T + bias``.

    weight  [out, in]; what the mask prunes is never read, whatever it is
    mask    bool [out, in], True = keep
    bias    [out], zero where pruned
    """

    weight: Tensor
    mask: Tensor
    bias: Tensor

    @classmethod
    def of(cls, weight: Tensor, mask: Tensor, bias: Tensor | None, dead: Tensor | None) -> Matrix:
        """Of a layer as it is; ``dead``: bool [out], True = bias pruned."""
        bias = weight.new_zeros(len(weight)) if bias is None else bias
        if dead is not None:
            bias = bias.masked_fill(dead.to(bias.device), 0)
        return cls(weight, mask.to(weight.device), bias)

    def kept(self) -> Tensor:
        """The weight [out, in] with zeros where it is pruned."""
        return torch.where(self.mask, self.weight, self.weight.new_zeros(()))

    def rows(self, index: Sequence[int]) -> Matrix:
        """These output features, `EMPTY` among them for rows of zeros with a bias of zero."""
        return Matrix(_take(self.weight, index, 0), _take(self.mask, index, 0), _take(self.bias, index, 0))

    def columns(self, index: Sequence[int]) -> Matrix:
        """These input features, `EMPTY` among them for columns of zeros."""
        return Matrix(_take(self.weight, index, 1), _take(self.mask, index, 1), self.bias)

    def with_bias(self, added: Tensor) -> Matrix:
        """``added`` [out] in float64 on top of the bias, rounded once."""
        return Matrix(self.weight, self.mask, exact(self.bias).add(added).to(self.bias))

    def with_row(self, row: int, weight: Tensor | None, bias: float) -> Matrix:
        """Row ``row`` replaced: ``weight`` [in] (None: zeros) and ``bias``."""
        whole, mask, biases = self.weight.clone(), self.mask.clone(), self.bias.clone()
        whole[row] = 0 if weight is None else weight.to(whole)
        mask[row] = False if weight is None else (weight != 0).to(mask.device)
        biases[row] = bias
        return Matrix(whole, mask, biases)

    def with_column(self, column: int, weight: Tensor) -> Matrix:
        """Column ``column`` replaced by ``weight`` [out]."""
        whole, mask = self.weight.clone(), self.mask.clone()
        whole[:, column] = weight.to(whole)
        mask[:, column] = (weight != 0).to(mask.device)
        return Matrix(whole, mask, self.bias)

    def times(self, columns: Tensor, x: Tensor) -> Tensor:
        """``kept()[:, columns] @ x`` [out], float64 on the CPU; ``columns`` bool [in], x [True ones]."""
        return exact(self.columns(columns.nonzero().flatten().tolist()).kept()) @ exact(x)


def live_rows(mask: Tensor) -> Tensor:
    """bool [out] of a mask [out, in]: what keeps a weight. A maximum is much faster than `any` on CPUs."""
    return mask.view(torch.uint8).amax(1).bool()


def live_columns(mask: Tensor) -> Tensor:
    """bool [in] of a mask [out, in]: what keeps a weight."""
    return mask.view(torch.uint8).amax(0).bool()


def live_features(source: Tensor, reader: Tensor) -> tuple[Tensor, Tensor]:
    """Of masks [features, in] and [out, features]: the features to be computed, and the constant ones.

    Without inputs a neuron is ``activation(bias)`` for every token, and a dimension of value its bias, before
    attention takes the mean and after. What nothing reads is neither.
    """
    fed, read = live_rows(source), live_columns(reader)
    return fed & read, ~fed & read


def round_up(size: int, multiple: int, limit: int) -> int:
    """The size to store: at least one, a multiple where there is room, never more than ``limit``."""
    return min(limit, -(-max(size, 1) // multiple) * multiple)


def exact(tensor: Tensor) -> Tensor:
    """float64 on the CPU: what is folded is rounded once."""
    return tensor.detach().to("cpu", torch.float64)


def _take(tensor: Tensor, index: Sequence[int], dim: int) -> Tensor:
    source = torch.tensor(index, dtype=torch.int64, device=tensor.device)
    taken = tensor.index_select(dim, source.clamp(min=0))
    taken[(slice(None),) * dim + (source == EMPTY,)] = 0
    return taken
