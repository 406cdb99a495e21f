"""2:4 weights through torch's semi-structured tensors: at most two of four neighbours in a row are kept.

cuSPARSELt packs them, or CUTLASS if torch lacks that library, so the format works only on NVIDIA GPUs and
raises an error elsewhere. It serves exchange and comparison: at the shapes of BERT, 2:4 is rarely faster than
dense, and torch's interface is a prototype.
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

from ..cuda.hardware import LEAST_CAPABILITY
from .base import PackedWeight, checked, refuse_options

GROUP = 4
KEPT_OF_GROUP = 2
DTYPES = (torch.bfloat16, torch.float16)
LEAST_ROWS, LEAST_COLUMNS = 32, 64  # supported by both libraries


class SemiStructured(PackedWeight):
    """torch's packed form of a 2:4 matrix.

    Attributes:
        values: bfloat16 or float16; two of four weights as packed by torch. cuSPARSELt adds their positions.
        places: int16; positions of the weights with CUTLASS, else empty.
    """

    name = "2:4"
    TENSORS = ("values", "places")
    GEOMETRY = ()

    places: Tensor

    @classmethod
    def from_dense(cls, weight: Tensor, mask: Tensor | None = None, **options: Any) -> Self:
        """See ``PackedWeight.from_dense``; ``weight`` is bfloat16 or float16.

        Raises:
            ValueError: The mask keeps more than two of four neighbours, the sizes are not multiples of 32 x
                64, a kept weight is NaN or inf, or the weight is not on an NVIDIA GPU of compute capability
                8.0 or higher.
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
                f"mask is not 2:4: row {row} keeps more than 2 of the 4 columns from {group * GROUP} on"
            )
        # Adding 0 removes negative zeros: packers recognize kept weights by their bits, and -0.0 has one set.
        dense = torch.where(mask, weight, weight.new_zeros(())) + 0.0
        if not dense.isfinite().all():
            raise ValueError(
                "a kept weight is NaN or inf, which 2:4 would spread over its row; "
                "prune it or use another format"
            )
        if weight.device.type != "cuda" or torch.version.hip:
            raise ValueError(
                f"weight is on {weight.device}; move it to an NVIDIA GPU, which packs 2:4 weights"
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
        assert values is not None  # torch's type also allows the transposed form alone
        places = weight.new_empty(0, dtype=torch.int16) if places is None else places
        return cls((rows, columns), {"values": values, "places": places}, {})

    def replace(self, **tensors: Tensor) -> Self:
        """See ``PackedWeight.replace``. Raise ValueError for values of another dtype: 2:4 cannot be cast."""
        if tensors.get("values", self.values).dtype != self.dtype:
            raise ValueError(f"2:4 weights of {self.dtype} cannot be cast; pack them again")
        return super().replace(**tensors)

    def tensor(self) -> SparseSemiStructuredTensor:
        """Return torch's tensor over the stored tensors, for ``torch.nn.functional.linear``."""
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
        # The packed form is opaque; torch multiplies it with the identity, which is exact for finite weights.
        return self.tensor().to_dense()

    def kept(self) -> Tensor:
        """See ``PackedWeight.kept``; a kept weight of exactly 0 counts as pruned."""
        return self.to_dense() != 0
