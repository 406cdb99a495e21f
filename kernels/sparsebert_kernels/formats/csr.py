"""Compressed sparse rows through torch: the sparse format for machines without the native kernels."""

from __future__ import annotations

import functools
import warnings
from typing import Any, Self

import torch
from torch import Tensor

from .base import PackedWeight, checked, refuse_options


class CsrSparse(PackedWeight):
    """Kept weights row by row, with the fields of ``torch.sparse_csr_tensor``.

    Attributes:
        values: float32 or bfloat16 (nnz,).
        crow_indices: int32 (out_features + 1,).
        col_indices: int32 (nnz,).
    """

    name = "csr"
    TENSORS = ("values", "crow_indices", "col_indices")
    GEOMETRY = ()

    crow_indices: Tensor
    col_indices: Tensor

    @classmethod
    def from_dense(cls, weight: Tensor, mask: Tensor | None = None, **options: Any) -> Self:
        """See ``PackedWeight.from_dense``."""
        refuse_options(cls, options)
        weight, mask = checked(weight, mask)
        crow = torch.zeros(weight.shape[0] + 1, dtype=torch.int32, device=weight.device)
        crow[1:] = mask.sum(1).cumsum(0)
        tensors = {
            "values": weight[mask],
            "crow_indices": crow,
            "col_indices": mask.nonzero()[:, 1].int(),
        }
        return cls((weight.shape[0], weight.shape[1]), tensors, {})

    def tensor(self) -> Tensor:
        """Return torch's CSR tensor over the stored tensors, unchecked."""
        _consume_beta_warning()
        index = self.crow_indices, self.col_indices
        return torch.sparse_csr_tensor(*index, self.values, self.shape, check_invariants=False)

    def coordinates(self) -> tuple[Tensor, Tensor]:
        """Return row and column (int64) of every stored value."""
        counts = torch.diff(self.crow_indices.long())
        row = torch.repeat_interleave(torch.arange(self.shape[0], device=self.device), counts)
        return row, self.col_indices.long()

    def to_dense(self) -> Tensor:
        return self.values.new_zeros(self.shape).index_put(self.coordinates(), self.values)

    def kept(self) -> Tensor:
        mask = torch.zeros(self.shape, dtype=torch.bool, device=self.device)
        mask[self.coordinates()] = True
        return mask


@functools.cache
def _consume_beta_warning() -> None:
    """Silence torch's one warning that CSR tensors are in beta: the user did not choose them."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.sparse_csr_tensor([0, 0], torch.zeros(0, dtype=torch.int64), torch.zeros(0), (1, 1))
