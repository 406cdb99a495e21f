"""``PackedLayers``: the layers of an encoder over tokens without padding, as a GPU runs them.

One product computes query, key and value; the products after attention and activation add the residual
themselves; attention runs within ragged sequences. Dense and sparse layers take the same path. Nothing waits
for the device or depends on data, so that a CUDA graph or a compiler can capture a run.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from sparsebert.nn.encoder_layers import EncoderLayer, Family, encoder_layers
from sparsebert.nn.fused_activation import FusedActivation
from sparsebert.nn.joined_linears import JoinedLinears, joined_of
from sparsebert.nn.module_swap import is_replica
from sparsebert.nn.native_layers import heads_of, require_known, settings_of
from sparsebert.nn.plain_path import FOREIGN_CODE, RECORDED_OUTPUTS, RECORDER, PlainPath, is_foreign
from sparsebert.nn.sequences import Sequences, load_flash
from sparsebert.nn.sparse_linear import JOINED, SparseLinear
from sparsebert.nn.watched import Watched
from sparsebert_kernels.cpu.encoder_parts import HeadGroup

_cpu_too = False


@contextmanager
def on_cpu(packed: bool = True) -> Iterator[None]:
    """Run packed layers on a CPU as well, in place of its engines, with the reference of every operator."""
    global _cpu_too
    before, _cpu_too = _cpu_too, packed
    try:
        yield
    finally:
        _cpu_too = before


def runs_packed(tensor: Any) -> bool:
    """Whether fused modules run packed layers where this tensor is."""
    return isinstance(tensor, Tensor) and (tensor.is_cuda or (_cpu_too and tensor.is_cpu))


def require_packable(encoder: Any, family: Family) -> None:
    """Raise ``PlainPath`` unless the layers of an encoder of a known family have a packed form."""
    if family.pre_norm:
        raise PlainPath("rotary positions and gated networks have no packed form")
    if family.relative_bias:
        raise PlainPath("attention that adds biases of distances has no packed form")
    for layer in encoder_layers(encoder, family):
        require_known(layer)


class PackedLayers(Watched):
    """The layers of an encoder, and all that their description was made from.

    Query, key and value are joined here, where they can be. Making a description waits for the device.

    Attributes:
        layers: The layers in turn.
    """

    def __init__(self, encoder: Any, family: Family) -> None:
        """Describe the layers.

        Raises:
            PlainPath: They have no packed form.
        """
        require_packable(encoder, family)
        layers = encoder_layers(encoder, family)
        settings = settings_of(encoder, layers)
        if next(encoder.parameters()).is_cuda:
            load_flash()
        self.layers = [PackedLayer.of(layer, family) for layer in layers]
        self._parts = [
            (parent, name, part) for parent in encoder.modules() for name, part in parent._modules.items()
        ]
        self._collector: Any = getattr(sys.modules.get(RECORDER), "_active_collector", None)
        leaves = {id(leaf) for layer in self.layers for leaf in layer.called}
        containers = (module for layer in layers for module in layer.layer.modules())
        self._passed_over = [module for module in containers if id(module) not in leaves]
        # The layers read all tensors where they are, so that changes in place need no new description.
        held = (*encoder.parameters(), *encoder.buffers())
        in_place = {tensor.data_ptr() for tensor in held}
        super().__init__(list(encoder.modules()), (), settings, in_place)

    def run(self, x: Tensor, sequences: Sequences) -> Tensor:
        """Return the last layer's output for x [tokens, hidden]."""
        for layer in self.layers:
            x = layer.run(x, sequences)
        return x

    def require_traceable(self) -> None:
        """Raise ``PlainPath`` if a trace would pass over modules that must run themselves.

        They were replaced, train, have hooks or are recorded. A compiler traces again when this changes.
        """
        # In place of the context variable, which cannot be traced: see ``is_recording``.
        if getattr(self._collector, "compiling", False) and self._collector.global_var:
            raise PlainPath(RECORDED_OUTPUTS)
        for parent, name, part in self._parts:
            if parent._modules.get(name) is not part:
                raise PlainPath("a module of the encoder was replaced")
        for module in self._passed_over:
            if module.training:
                raise PlainPath("the encoder is in training mode")
            for hooks in (module._forward_hooks, module._forward_pre_hooks):
                for hook in hooks.values():
                    if is_foreign(hook):
                        raise PlainPath(FOREIGN_CODE)


@dataclass(frozen=True)
class PackedLayer:
    """One layer with the LayerNorms behind attention and feed-forward network.

    Attributes:
        projections: Query, key and value.
        joined: The three in one product, if they can be joined.
        output: The attention's output projection.
        up: The up-projection.
        down: The down-projection.
        norms: The LayerNorms at the attention and at the feed-forward network.
        activation: The activation between ``up`` and ``down``; None if ``up`` applies it.
        heads: The heads by width, in the order of the projections' rows.
        scale: Factor of the scores.
    """

    projections: tuple[Any, ...]
    joined: JoinedLinears
    output: Any
    up: Any
    down: Any
    norms: tuple[nn.Module, ...]
    activation: nn.Module | None
    heads: list[HeadGroup]
    scale: float

    @classmethod
    def of(cls, layer: EncoderLayer, family: Family) -> PackedLayer:
        """Describe a layer of a known family, and join its query, key and value."""
        query, key, value, output, up, down = layer.linears
        joined = joined_of(query)
        joined.join_([query, key, value])
        heads, scale = heads_of(layer, family)
        activation = None if isinstance(layer.activation, FusedActivation) else layer.activation
        return cls((query, key, value), joined, output, up, down, layer.norms, activation, list(heads), scale)

    @property
    def called(self) -> tuple[nn.Module | None, ...]:
        """The modules that ``run`` calls, or whose tensors it multiplies."""
        return (*self.projections, self.output, self.up, self.down, *self.norms, self.activation)

    def run(self, x: Tensor, sequences: Sequences) -> Tensor:
        """Map x [tokens, hidden] to the layer's output."""
        context = self._attend(self._project(x), sequences)
        x = self.norms[0](_add_product(self.output, context, x))
        hidden = self.up(x)
        if self.activation is not None:
            hidden = self.activation(hidden)
        return self.norms[1](_add_product(self.down, hidden, x))

    def _project(self, x: Tensor) -> list[Tensor]:
        """Return query, key and value for x, from one product where they are joined."""
        # In eager mode, a description is made anew where they are joined no longer.
        is_current = not torch.compiler.is_compiling() or self.joined.is_current(self.projections)
        if self.joined.joined and is_current and not any(map(_is_hooked, self.projections)):
            return self.joined.outputs(x)
        return [projection(x) for projection in self.projections]

    def _attend(self, projected: list[Tensor], sequences: Sequences) -> Tensor:
        """Return the context of all heads, [tokens, value widths of all heads]."""
        queries, keys, values = map(self._by_group, projected, ("score", "score", "value"))
        contexts = [
            sequences.attend(*group, self.scale).flatten(1)
            for group in zip(queries, keys, values, strict=True)
        ]
        return contexts[0] if len(contexts) == 1 else torch.cat(contexts, -1)

    def _by_group(self, projected: Tensor, kind: str) -> list[Tensor]:
        """Return each group's part of a projection, [tokens, heads, width]."""
        shapes = [(group.heads, getattr(group, kind)) for group in self.heads]
        parts = projected.split([heads * width for heads, width in shapes], -1)
        return [part.unflatten(-1, shape) for part, shape in zip(parts, shapes, strict=True)]


def current_packed_layers(module: Any) -> PackedLayers:
    """Return the packed layers of a fused encoder as they are now.

    Raises:
        PlainPath: They have no packed form, or must run one by one in this call; under a compiler, which
            cannot make a description, also if there is none.
    """
    if is_replica(module):  # its description is that of the module on the first device
        raise PlainPath("DataParallel runs the encoder on several devices")
    described: PackedLayers | None = module._packed
    if torch.compiler.is_compiling():
        if described is None:
            raise PlainPath("packed layers must be described before a compiler traces them")
        described.require_traceable()
        return described
    if described is None or not described.is_current():
        described = vars(module)["_packed"] = PackedLayers(module, module.family)
    described.require_undisturbed()
    return described


def prepare_packed_(module: Any) -> None:
    """Describe the layers of a fused encoder on a GPU before its first call, and join what can be joined.

    On another device, forget both, which would hold memory of the GPU that the encoder has left.
    """
    described: PackedLayers | None = vars(module).get("_packed")
    if not runs_packed(next(module.parameters(), None)):
        vars(module).pop("_packed", None)
        for each in module.modules():
            vars(each).pop(JOINED, None)
    elif described is None or not described.is_current():  # it is after ``to`` with nothing to do
        vars(module).pop("_packed", None)
        with suppress(PlainPath):  # calls say why
            vars(module)["_packed"] = PackedLayers(module, module.family)


def _add_product(module: Any, x: Tensor, residual: Tensor) -> Tensor:
    """Return the output of a linear layer plus a residual, in one kernel where there is one."""
    if isinstance(module, SparseLinear):
        return module(x, residual)
    return module(x) + residual


def _is_hooked(module: nn.Module) -> bool:
    return bool(module._forward_hooks or module._forward_pre_hooks)
