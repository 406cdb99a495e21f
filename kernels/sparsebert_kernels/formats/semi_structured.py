"""2:4 weights through torch's semi-structured tensors: at most two of four neighbours in a row are kept.

The packing is cuSPARSELt's (CUTLASS's where torch lacks that library), so it exists on a GPU alone; elsewhere
a clear refusal is more honest than a dense matrix under this name. It is here for exchange and comparison: at
the shapes of BERT 2:4 is rarely faster than dense, and torch calls its own interface a prototype.
"""

from __future__ import annotations

import warnings
from typing import Any, Self

import torch
from torch import Tensor
from torch.sparse import (
    SparseSemiStructuredTensor,
    SparseSemiStructuredTensorCUSPARSELT,
    SparseSemiStructuredTensorCUTLASS,
    to_sparse_semi_structured,
)

from .base import PackedWeight, checked, refuse_options

GROUP = 4
KEPT_OF_GROUP = 2
DTYPES = (torch.bfloat16, torch.float16)
LEAST_ROWS, LEAST_COLUMNS = 32, 64  # what both libraries pack
LEAST_CAPABILITY = (8, 0)


class SemiStructured(PackedWeight):
    """torch's packed form of a 2:4 matrix.

    values  bfloat16 or float16   what torch packed: two of four weights, with cuSPARSELt their places as well
    places  int16                 the places of the two, with CUTLASS; else empty
    """

    name = "2:4"
    TENSORS = ("values", "places")
    GEOMETRY = ()

    places: Tensor

    @classmethod
    def from_dense(cls, weight: Tensor, mask: Tensor | None = None, **options: Any) -> Self:
        """See `PackedWeight.from_dense`; ``weight`` is bfloat16 or float16.

        Raises ValueError for a mask that keeps more than two of four neighbours, sizes that are no multiple
        of 32 x 64, kept weights that are NaN or inf, and a device other than a GPU of compute capability 8.0.
        """
        refuse_options(cls, options)
        weight, mask = checked(weight, mask, DTYPES)
        rows, columns = weight.shape
        if rows % LEAST_ROWS or columns % LEAST_COLUMNS:
            raise ValueError(
                f"weight is {rows} x {columns}; 2:4 needs multiples of {LEAST_ROWS} x {LEAST_COLUMNS}"
            )
        crowded = mask.reshape(rows, -1, GROUP).sum(2) > KEPT_OF_GROUP
        if crowded.any():
            row, group = crowded.nonzero()[0].tolist()
            raise ValueError(
                f"the mask is not 2:4: row {row} keeps more than 2 of the 4 columns from {group * GROUP} on"
            )
        # Selected, and without negative zeros: packers tell what is kept by its bits, and -0.0 has one set.
        dense = torch.where(mask, weight, weight.new_zeros(())) + 0.0
        if not dense.isfinite().all():
            raise ValueError("weight has NaN or inf where it is kept; 2:4 would spread it over the row")
        if weight.device.type != "cuda" or torch.version.hip:
            raise ValueError(
                f"weight is on {weight.device}; 2:4 is packed on an NVIDIA GPU: move it there first"
            )
        capability = torch.cuda.get_device_capability(weight.device)
        if capability < LEAST_CAPABILITY:
            raise ValueError(
                f"{weight.device} has compute capability {capability[0]}.{capability[1]}; 2:4 needs 8.0"
            )
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "The PyTorch API of SparseSemiStructuredTensor is in prototype")
            packed = to_sparse_semi_structured(dense.contiguous())
        values, places = packed.packed, packed.meta
        assert values is not None  # torch's own type allows for the transposed form alone
        places = weight.new_empty(0, dtype=torch.int16) if places is None else places
        return cls((rows, columns), {"values": values, "places": places}, {})

    def replace(self, **tensors: Tensor) -> Self:
        """See `PackedWeight.replace`. ValueError for values of another dtype: they are no mere numbers."""
        if tensors.get("values", self.values).dtype != self.dtype:
            raise ValueError(f"2:4 weights of {self.dtype} cannot be cast; pack them again")
        return super().replace(**tensors)

    def tensor(self) -> SparseSemiStructuredTensor:
        """torch's tensor over the stored ones, for `torch.nn.functional.linear`."""
        library = (
            SparseSemiStructuredTensorCUTLASS if self.places.numel() else SparseSemiStructuredTensorCUSPARSELT
        )
        return library(
            shape=torch.Size(self.shape),
            packed=self.values,
            meta=self.places if self.places.numel() else None,
            packed_t=None,
            meta_t=None,
            compressed_swizzled_bitmask=None,
        )

    def to_dense(self) -> Tensor:
        # The packed form is opaque; a product with the identity reads it exactly, since all of it is finite.
        return self.tensor().to_dense()

    def kept(self) -> Tensor:
        """See `PackedWeight.kept`; a kept weight of exactly 0 counts as pruned."""
        return self.to_dense() != 0
