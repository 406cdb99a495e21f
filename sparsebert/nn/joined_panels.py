"""Panel weights of several layers joined into one, so that a GPU computes them in one launch."""

from __future__ import annotations

import operator
from collections.abc import Sequence

import torch
from torch import Tensor

from sparsebert.nn.sparse_linear import SparseLinear
from sparsebert_kernels.formats.panel import PanelSparse, join
from sparsebert_kernels.ops import can_share


class JoinedPanels:
    """Weights and biases of the same layers, joined on the first call and again whenever one is replaced."""

    def __init__(self) -> None:
        self._values: list[Tensor] = []
        self._weight: PanelSparse | None = None
        self._bias_state: list[tuple[Tensor | None, int]] = []
        self._bias: Tensor | None = None

    def weight(self, layers: Sequence[SparseLinear]) -> PanelSparse | None:
        """Return the joined weight, None if the layers cannot be joined.

        The layers' values become views of the joined weight.
        """
        values = [layer.values for layer in layers]
        if len(values) == len(self._values) and all(map(operator.is_, values, self._values)):
            return self._weight
        packed = [layer.packed for layer in layers]
        self._weight = None
        if can_share(packed) and not any(layer.trainable for layer in layers):
            # Inference tensors could not be saved for a later backward pass.
            with torch.inference_mode(False):
                self._weight, members = join(packed)  # type: ignore[arg-type]
            values = [member.values for member in members]
            for layer, view in zip(layers, values, strict=True):
                layer._buffers["values"] = view
        self._values = values
        return self._weight

    def bias(self, biases: Sequence[Tensor | None]) -> Tensor | None:
        """Return the joined bias; None if a layer has none. A bias changed in place is joined again."""
        state = [(bias, _version(bias)) for bias in biases]
        unchanged = len(state) == len(self._bias_state) and all(
            new is old and now == before
            for (new, now), (old, before) in zip(state, self._bias_state, strict=True)
        )
        if not unchanged:
            present = [bias.detach() for bias in biases if bias is not None]
            with torch.inference_mode(False):
                self._bias = torch.cat(present) if len(present) == len(biases) else None
            self._bias_state = state
        return self._bias


def _version(tensor: Tensor | None) -> int:
    """Return the count of in-place changes; 0 for inference tensors, which keep none."""
    return 0 if tensor is None or tensor.is_inference() else tensor._version
