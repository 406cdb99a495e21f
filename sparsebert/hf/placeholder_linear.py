"""The placeholder of a sparse layer while transformers loads a model."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from sparsebert.hf.config import StoredLayer
from sparsebert.nn.checkpoint_form import stored_weight
from sparsebert.tickets.bits import packed_bytes, unpack_bits


class PlaceholderLinear(nn.Module):
    """A sparse layer in its checkpoint form (``sparsebert.nn.checkpoint_form``), on the default device.

    After loading, it serves as the ``nn.Linear`` to build the sparse layer from. ``weight`` is computed on
    access, so the model never holds all its dense weights at once.
    """

    weight_bits: Tensor
    bias: nn.Parameter | None
    conv1d: type[nn.Module] | None = None  # as of ``SparseLinear``

    def __init__(self, layer: StoredLayer, dtype: torch.dtype) -> None:
        super().__init__()
        self.out_features, self.in_features = layer.shape
        self.register_buffer("weight_bits", torch.empty(packed_bytes(layer.shape), dtype=torch.uint8))
        self.weight_values = nn.Parameter(torch.empty(layer.kept, dtype=dtype))
        bias = nn.Parameter(torch.empty(self.out_features, dtype=dtype)) if layer.bias else None
        self.register_parameter("bias", bias)

    def mask(self) -> Tensor:
        """bool [out, in], on the CPU. Raises ValueError as ``sparsebert.tickets.bits.unpack_bits``."""
        return unpack_bits(self.weight_bits.cpu(), (self.out_features, self.in_features))

    @property
    def weight(self) -> nn.Parameter:
        """The dense matrix [out, in] on the layer's device.

        Raises ValueError as ``sparsebert.nn.checkpoint_form.stored_weight``.
        """
        return nn.Parameter(stored_weight(self.weight_values, self.mask().to(self.weight_values.device)))

    def forward(self, *args: Any) -> Tensor:
        raise RuntimeError("this layer is not packed yet: the model is still being loaded")
