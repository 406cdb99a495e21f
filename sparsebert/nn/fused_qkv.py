"""Query, key and value of a self-attention, computed by one native call that reads their input once.

``fuse_qkv_`` registers two hooks on the attention module. The first runs before the attention's forward
method and computes all projections of its input. Each projection stays a separate module: when the attention
calls it, it returns the precomputed output. The second hook, which runs after errors too, drops unused
outputs. The outputs therefore live for one call of the attention, in the calling thread.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from sparsebert.nn.joined_linears import forget_join_, joined_of
from sparsebert.nn.module_swap import HOOKS, is_replica
from sparsebert.nn.precomputed import PRECOMPUTED, Precomputed, leave, leave_none
from sparsebert.nn.sparse_linear import JOINED, SparseLinear
from sparsebert_kernels import ops
from sparsebert_kernels.cuda import backend
from sparsebert_kernels.formats.panel import PanelSparse
from sparsebert_kernels.ops import plain_inference

# An attention that leaves outputs unused in this many consecutive calls does not project its own input: the
# hooks skip it from then on.
MAX_UNUSED_CALLS = 8


def fuse_qkv_(attention: nn.Module, names: Sequence[str]) -> None:
    """Let ``attention`` compute its projections in one call wherever nothing can observe the difference.

    Nothing can without gradients and without autocast, on a plain tensor, if the attention has no other
    forward pre-hooks, the projections have no forward hooks, and no forward method is patched. On a single
    CPU thread the projections run one by one, which takes no longer. The hooks hold names only, so that
    copies and pickles of the attention are fused too.

    Panels on a GPU are joined here. Panels that are replaced later, by a move or ``load_state_dict``, and
    those of a copy are joined in the next call in eager mode; a move frees the memory of the join. A compiler
    cannot join: it sees one operator for joined projections, and otherwise one for each projection.

    Args:
        attention: A module whose forward method takes the input of the projections first, or as
            ``hidden_states``.
        names: Attributes of the attention that hold the projections, sparse layers of one format.
    """
    layers = [getattr(attention, name) for name in names]
    if backend.covers(PanelSparse.name, layers[0].device):
        joined_of(layers[0]).join_(layers)
    hooks = FusedQKV(names)
    attention.register_forward_pre_hook(hooks.before, with_kwargs=True)
    attention.register_forward_hook(hooks.after, always_call=True)


def unfuse_qkv_(attention: nn.Module) -> None:
    """Remove the hooks of ``fuse_qkv_``, if there are any."""
    for hooks in (attention._forward_pre_hooks, attention._forward_hooks):
        for number in [number for number, hook in hooks.items() if _is_qkv_hook(hook)]:
            for name in HOOKS:
                if isinstance(registered := getattr(attention, name), dict):
                    registered.pop(number, None)
            forget_join_(attention)


def is_fused(attention: nn.Module) -> bool:
    """Whether the attention has the hooks of ``fuse_qkv_``."""
    return any(map(_is_qkv_hook, attention._forward_pre_hooks.values()))


class FusedQKV:
    """The two hooks of one attention."""

    def __init__(self, names: Sequence[str]) -> None:
        self.names = tuple(names)
        self._unused_calls = 0

    def __getstate__(self) -> dict[str, Any]:
        return {"names": self.names}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)  # type: ignore[misc]

    def before(self, attention: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        """Forward pre-hook: compute the projections of the attention's input."""
        if torch.is_grad_enabled():
            return
        x = args[0] if args else kwargs.get("hidden_states")
        if torch.compiler.is_compiling():
            self._before_compiled(attention, x)
            return
        if type(x) is not Tensor or self._unused_calls >= MAX_UNUSED_CALLS:
            return
        # The cheap and frequent answer first: it is given in every attention of every call on one thread.
        if x.is_cpu and torch.get_num_threads() == 1 and not backend.runs_on(x):
            return
        if not plain_inference(x):
            return
        layers = [getattr(attention, name) for name in self.names]
        if _undisturbed(attention, layers):
            outputs = _outputs(attention, layers, x)
            PRECOMPUTED.set(Precomputed(x, dict(zip(layers, outputs, strict=True))))

    def after(self, attention: nn.Module, args: tuple[Any, ...], result: Any) -> None:
        """Forward hook: drop the outputs that the attention did not use."""
        if torch.compiler.is_compiling():
            for name in self.names:
                leave_none(getattr(attention, name))
            return
        if (precomputed := PRECOMPUTED.get()) is None:
            return
        PRECOMPUTED.set(None)
        self._unused_calls = self._unused_calls + 1 if precomputed.outputs else 0

    def _before_compiled(self, attention: nn.Module, x: Any) -> None:
        """Compute joined projections in a compiled graph, which holds one operator for all of them."""
        layers = [getattr(attention, name) for name in self.names]
        if (
            isinstance(x, Tensor)
            and backend.covers(PanelSparse.name, x.device)
            and hasattr(layers[0], JOINED)
            and joined_of(layers[0]).is_current(layers)
            and joined_of(layers[0]).joined
            and _undisturbed(attention, layers)
        ):
            for layer, output in zip(layers, joined_of(layers[0]).outputs(x), strict=True):
                leave(layer, x, output)


def _outputs(attention: nn.Module, layers: Sequence[SparseLinear], x: Tensor) -> Sequence[Tensor]:
    # A replica of DataParallel shares its join with the replicas on other devices.
    can_join = backend.covers(PanelSparse.name, x.device) and not is_replica(attention)
    if can_join and joined_of(layers[0]).join_(layers):
        return joined_of(layers[0]).outputs(x)
    packed = [layer.packed for layer in layers]
    biases = [layer.bias for layer in layers]
    if layers[0].precision and (rounded := ops.rounded_for(x, packed[0])) is not x:
        return [y.to(x.dtype) for y in ops.linear_shared(rounded, packed, biases)]
    return ops.linear_shared(x, packed, biases)


def _undisturbed(attention: nn.Module, layers: Sequence[nn.Module]) -> bool:
    """Whether no foreign code runs between the pre-hook of the attention and its projections."""
    if len(attention._forward_pre_hooks) > 1 or "forward" in attention.__dict__:
        return False
    return all(
        isinstance(layer, SparseLinear)
        and not layer._forward_pre_hooks
        and not layer._forward_hooks
        and layer.activation == "none"
        and "forward" not in layer.__dict__
        for layer in layers
    )


def _is_qkv_hook(hook: Any) -> bool:
    return isinstance(getattr(hook, "__self__", None), FusedQKV)
