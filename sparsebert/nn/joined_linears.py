"""Linear layers over one input, joined into one product; the layers hold views of the joined tensors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sparsebert.nn.sparse_linear import JOINED, SparseLinear
from sparsebert_kernels import ops
from sparsebert_kernels.formats.panel import PanelSparse, join


class JoinedLinears:
    """One product in place of several layers over the same input, for instance query, key and value.

    ``join_`` makes the tensors of the layers views of joined ones, so that changes in place need no new join
    and memory does not grow. It waits for the device; ``outputs`` never does. A copy, or a pickle, begins
    without a join. The first layer holds the join and drops it where its tensors are replaced, so that layers
    that leave a device hold none of its memory.
    """

    def __init__(self) -> None:
        self._weights: list[Tensor] = []  # the layers' own
        self._biases: list[Tensor | None] = []
        self._addresses: list[int] = []
        self._heights: list[int] = []
        self._weight: PanelSparse | Tensor | None = None
        self._bias: Tensor | None = None

    def __reduce__(self) -> Any:
        return JoinedLinears, ()

    def __deepcopy__(self, memo: Any) -> JoinedLinears:
        return JoinedLinears()

    def join_(self, layers: Sequence[Any]) -> bool:
        """Join the layers unless they are, and return whether they can be joined.

        Dense layers can, and panels of one form, except where parameters are inference tensors, whose memory
        cannot be replaced.
        """
        if self.is_current(layers):
            return self.joined
        biases = [layer._parameters.get("bias") for layer in layers]
        self._weight = self._bias = None
        # Inference tensors could not be saved for a later backward pass.
        with torch.inference_mode(False), torch.no_grad():
            dtypes = {bias.dtype for bias in biases if bias is not None}
            if len(dtypes) > 1 or any(bias is not None and bias.is_inference() for bias in biases):
                pass  # no common bias
            elif _are_panels(layers):
                self._weight, members = join([layer.packed for layer in layers])
                for layer, member in zip(layers, members, strict=True):
                    layer._buffers["values"] = member.values
            elif _are_dense(layers):
                self._weight = torch.cat([_weight_of(layer) for layer in layers])
                for layer, view in zip(layers, self._weight.split(_heights(layers)), strict=True):
                    if isinstance(layer, SparseLinear):
                        layer._buffers["values"] = view
                    else:
                        layer.weight.data = view
            if self.joined:
                self._bias = _joined_bias(biases, _heights(layers))
        self._weights, self._biases = [_weight_of(layer) for layer in layers], biases
        self._addresses, self._heights = self._present_addresses(), _heights(layers)
        return self.joined

    @property
    def joined(self) -> bool:
        """Whether the layers of the last ``join_`` could be joined."""
        return self._weight is not None

    def is_current(self, layers: Sequence[Any]) -> bool:
        """Whether these are the layers of the last ``join_``, with the same tensors.

        A compiler sees which tensors the layers hold, and compiles again where they hold others. Addresses,
        which ``tensor.data = ...`` changes, are compared in eager mode only.
        """
        if len(layers) != len(self._weights):
            return False
        for layer, weight, bias in zip(layers, self._weights, self._biases, strict=True):
            if _weight_of(layer) is not weight or layer._parameters.get("bias") is not bias:
                return False
        return torch.compiler.is_compiling() or self._present_addresses() == self._addresses

    def outputs(self, x: Tensor) -> list[Tensor]:
        """Return the outputs of joined layers, slices of the last dimension of one tensor."""
        if isinstance(self._weight, PanelSparse):
            whole = ops.linear(x, self._weight, self._bias)
        else:
            whole = F.linear(x, self._weight, self._bias)  # type: ignore[arg-type]
        return list(whole.split(self._heights, -1))

    def _present_addresses(self) -> list[int]:
        held = (*self._weights, *self._biases)
        # Opaque tensors have no address.
        return [tensor.data_ptr() for tensor in held if tensor is not None and not tensor.is_mkldnn]


def joined_of(projection: Any) -> JoinedLinears:
    """Return the join of the projections of which this is the first, which holds it from now on."""
    joined = getattr(projection, JOINED, None)
    if joined is None:
        joined = vars(projection)[JOINED] = JoinedLinears()
    return joined


def forget_join_(attention: nn.Module) -> None:
    """Drop the join of an attention's projections, if there is one."""
    for each in attention.children():
        vars(each).pop(JOINED, None)


def _weight_of(layer: Any) -> Tensor:
    """Return the tensor that holds a layer's weight."""
    return layer.values if isinstance(layer, SparseLinear) else layer.weight


def _heights(layers: Sequence[Any]) -> list[int]:
    return [layer.out_features for layer in layers]


def _are_panels(layers: Sequence[Any]) -> bool:
    return all(isinstance(layer, SparseLinear) and not layer.trainable for layer in layers) and (
        isinstance(layers[0].packed, PanelSparse) and ops.can_share([layer.packed for layer in layers])
    )


def _are_dense(layers: Sequence[Any]) -> bool:
    """Whether all weights are plain matrices of one width, dtype and device."""
    for layer in layers:
        if isinstance(layer, SparseLinear):
            if layer.format != "dense" or layer.trainable or layer.values.is_mkldnn or layer.precision:
                return False
        elif type(layer) is not nn.Linear or not _is_replaceable(layer.weight):
            return False
    kinds = {(layer.in_features, _weight_of(layer).dtype, _weight_of(layer).device) for layer in layers}
    return len(kinds) == 1


def _is_replaceable(weight: Tensor) -> bool:
    """Whether a weight is a plain parameter whose memory can become a view."""
    return type(weight) is nn.Parameter and not weight.is_inference()


def _joined_bias(biases: Sequence[Tensor | None], heights: Sequence[int]) -> Tensor | None:
    """Join the biases, zeros for none, and make them views of the result; None if no layer has one."""
    like = next((bias for bias in biases if bias is not None), None)
    if like is None:
        return None
    parts = zip(biases, heights, strict=True)
    whole = torch.cat([like.new_zeros(height) if bias is None else bias for bias, height in parts])
    for bias, view in zip(biases, whole.split(list(heights)), strict=True):
        if bias is not None:
            bias.data = view
    return whole
