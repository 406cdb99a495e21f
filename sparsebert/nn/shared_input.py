"""Layers that are fed one tensor, such as query, key and value, run as one native call."""

from __future__ import annotations

import operator
import threading
import weakref
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from sparsebert_kernels import ops
from sparsebert_kernels.cuda import backend
from sparsebert_kernels.formats.panel import PanelSparse, join
from sparsebert_kernels.ops import can_share, plain_inference

if TYPE_CHECKING:
    from sparsebert.nn.sparse_linear import SparseLinear

# Rounds in a row whose outputs nobody fetched: these layers are not fed one tensor after all.
MAX_WASTED_ROUNDS = 8


class SharedInput:
    """Held in common by sibling layers; each of them stays a module of its own, with its own weights.

    The first sibling called computes the outputs of all and puts those of the others aside; a sibling called
    with the very same tensor, by the same thread, fetches its output instead of computing it. What is put
    aside is dropped with the tensor it belongs to.

    Used only where nobody can tell the difference: in eager mode without gradients and without autocast, on a
    plain tensor, while no sibling has forward pre-hooks or a patched forward. Forward hooks fire as always.
    Not used on a single CPU thread, where a call for each layer takes no longer.
    Siblings are held weakly and join again after a copy or pickle: copying one layer copies only that layer.
    """

    def __init__(self) -> None:
        self._members: list[weakref.ref[SparseLinear]] = []
        self._local = threading.local()
        self._wasted = 0
        self._joined: tuple[list[Tensor], PanelSparse | None] = [], None
        self._joined_biases: tuple[list[tuple[Tensor | None, int]], Tensor | None] = [], None

    def join(self, layer: SparseLinear) -> None:
        """Make ``layer`` one of the siblings; a shallow copy of one stays outside."""
        members = [member for ref in self._members if (member := ref()) is not None]
        if all(member._buffers is not layer._buffers for member in members):
            self._members = [weakref.ref(member) for member in (*members, layer)]

    def __getstate__(self) -> dict[str, Any]:
        return {}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__()  # type: ignore[misc]

    def output(self, layer: SparseLinear, x: Tensor) -> Tensor | None:
        """What ``layer`` gives for x [..., in_features]; None where it has to compute that by itself."""
        if type(x) is not Tensor or torch.is_grad_enabled():
            return None
        if x.is_cpu and torch.get_num_threads() == 1 and not backend.runs_on(x):
            return None
        round_ = getattr(self._local, "round", None)
        if round_ is not None:
            if (output := round_.fetch(layer, x)) is not None:
                if not round_.outputs:
                    self._local.round = None
                    self._wasted = 0
                return output
            self._local.round = None
            self._wasted += 1
        if self._wasted >= MAX_WASTED_ROUNDS:
            return None
        siblings = [member for ref in self._members if (member := ref()) is not None]
        if layer not in siblings or len(siblings) < 2 or not _may_run_together(siblings, x):
            return None
        on_gpu = backend.covers(PanelSparse.name, x.device)
        joined = self._join_panels(siblings) if on_gpu else None
        packed = [sibling.packed for sibling in siblings]
        biases = [sibling._parameters["bias"] for sibling in siblings]
        outputs = ops.linear_shared(x, packed, biases, joined, self._join_biases(biases) if joined else None)
        waiting = {
            id(sibling): _Waiting(output, weight.values, bias)
            for sibling, output, weight, bias in zip(siblings, outputs, packed, biases, strict=True)
        }
        own = waiting.pop(id(layer)).output
        self._local.round = _Round(x, waiting)
        return own

    def _join_panels(self, siblings: list[SparseLinear]) -> PanelSparse | None:
        """The siblings' weights as one, of whose values theirs become views; made on the first call."""
        values = [sibling.values for sibling in siblings]
        known, joined = self._joined
        if len(known) == len(values) and all(map(operator.is_, known, values)):
            return joined
        packed = [sibling.packed for sibling in siblings]
        joined = None
        if can_share(packed) and not any(sibling.trainable for sibling in siblings):
            # As inference tensors they could not be saved for a backward pass later.
            with torch.inference_mode(False):
                joined, members = join(packed)  # type: ignore[arg-type]
            values = [member.values for member in members]
            for sibling, own in zip(siblings, values, strict=True):
                sibling._buffers["values"] = own
        self._joined = values, joined
        return joined

    def _join_biases(self, biases: Sequence[Tensor | None]) -> Tensor | None:
        """The siblings' biases as one, made anew where one was replaced or changed in place."""
        state = [(bias, _version(bias)) for bias in biases]
        known, joined = self._joined_biases
        same = len(known) == len(state) and all(
            old is new and before == now for (old, before), (new, now) in zip(known, state, strict=True)
        )
        if not same:
            with torch.inference_mode(False):
                joined = None if None in biases else torch.cat([bias.detach() for bias in biases])  # type: ignore[union-attr]
            self._joined_biases = state, joined
        return joined


class _Round:
    """Outputs for one x that wait for their layers, by the layers' identity."""

    __slots__ = ("inference", "outputs", "version", "x")

    def __init__(self, x: Tensor, outputs: dict[int, _Waiting]) -> None:
        self.outputs = outputs
        self.x = weakref.ref(x, lambda _: outputs.clear())
        self.inference = torch.is_inference_mode_enabled()
        self.version = _version(x)

    def fetch(self, layer: SparseLinear, x: Tensor) -> Tensor | None:
        if self.x() is not x or self.version != _version(x):
            return None
        waiting = self.outputs.pop(id(layer), None)
        if waiting is None or self.inference != torch.is_inference_mode_enabled():
            return None
        return waiting.output if waiting.is_of(layer) else None


class _Waiting:
    """An output and the weights it was computed with."""

    __slots__ = ("bias", "output", "values", "versions")

    def __init__(self, output: Tensor, values: Tensor, bias: Tensor | None) -> None:
        self.output, self.values, self.bias = output, values, bias
        self.versions = _version(values), _version(bias)

    def is_of(self, layer: SparseLinear) -> bool:
        """Whether the layer still has these weights, neither replaced nor changed in place."""
        same = layer.values is self.values and layer._parameters["bias"] is self.bias
        return same and self.versions == (_version(self.values), _version(self.bias))


def _may_run_together(siblings: list[SparseLinear], x: Tensor) -> bool:
    return plain_inference(x) and not any(
        layer._forward_pre_hooks or layer.activation != "none" or "forward" in layer.__dict__
        for layer in siblings
    )


def _version(tensor: Tensor | None) -> int:
    """The count of in-place changes; tensors made in inference mode keep none."""
    return 0 if tensor is None or tensor.is_inference() else tensor._version
