"""Dense to sparse and back: `sparsify_` and `densify_`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from sparsebert.bert import activation_name, is_bert_like, require_module, structure
from sparsebert.bert import full_name as full_name_of
from sparsebert.compaction.manifest import record_of
from sparsebert.hf.attach_quantizer import saveable_
from sparsebert.nn.module_swap import HOOKS, move_hooks, replace_module
from sparsebert.nn.shared_input import SharedInput
from sparsebert.nn.sparse_linear import FusedActivation, SparseLinear
from sparsebert.planning.after_compaction import CompactedTargets, compacted_targets
from sparsebert.planning.plan import LayerPlan, Plan
from sparsebert.planning.planner import check_options, plan_layers
from sparsebert.planning.target_layers import Filter, TargetLayer
from sparsebert.tickets.ticket import Ticket
from sparsebert_kernels.ops import can_share

DEFAULT_TOKENS = 128


@torch.inference_mode(False)
def sparsify_(
    model: nn.Module,
    ticket: Ticket | None = None,
    *,
    format: str | Plan = "auto",
    tokens: int | None = None,
    filter: Filter | None = None,
    fuse_qkv: bool = True,
    fuse_activation: bool = True,
    trainable: bool = False,
    compact: bool | None = None,
) -> nn.Module:
    """Swap pruned `nn.Linear` layers of ``model`` for `SparseLinear`, in place; returns the model.

    ticket           the masks; without one, the zeros already in the weights
    format           "auto" (the plan chooses and measures), the name of a format, or a `Plan` made before
    tokens           rows of x (batch times sequence length) that a layer will see; 128 if not given. A `Plan`
                     brings its own
    filter           ``filter(name, linear) -> bool``: which layers, of any model; narrows a ticket down
    fuse_qkv         layers fed by one tensor (query, key, value) run as one native call where that is faster
    fuse_activation  ReLU or GELU after an up-projection is applied by the kernel that computes it
    trainable        the kept weights are Parameters; only formats "element" and "vector", no fused activation
    compact          take out what the ticket empties first, as `sparsebert.compact.compact_` does: False
                     never, True demands it, None does it where the model allows it, without a ``filter`` and
                     ``trainable``. Layers then have other shapes, ``plan(model)`` says which, and
                     ``state_dict`` has them too. A `Plan` is followed in this

    Only layers of the ticket (or with zeros) change; masked weights are gone for good, whatever they were.
    Fused or not, every layer stays a module at its place: its name, state_dict keys (``weight``, dense, and
    ``bias``), hooks, training flag, bias Parameter and ``.weight`` (dense, computed) are as before. A fused
    activation module is replaced by a `FusedActivation` that passes through what the layer computed; layers
    or activations with forward hooks are not fused, so hooks see the same tensors as before.
    ``plan(model)`` gives the plan it was made by. A Hugging Face model is saved as it is now:
    `save_pretrained` writes masks and kept weights, and `from_pretrained` gives a sparse model.

    Raises ValueError, with the model as it was, for a model that is sparse already or has nothing to
    sparsify, a ticket or plan of another model, unknown options, and layers that cannot be packed (see
    `sparsebert.planning.target_layers.select`).
    """
    tokens = DEFAULT_TOKENS if tokens is None else tokens
    check_options("auto" if isinstance(format, Plan) else format, tokens)
    if isinstance(format, Plan) and format.layers:
        tokens = format.layers[0].tokens
        compact = any(layer.removed for layer in format.layers) if compact is None else compact
    left = compacted_targets(model, ticket, filter, tokens=tokens, compact=compact, trainable=trainable)
    if isinstance(format, Plan):
        plans = _matching(format, left.selected)
    else:
        made = plan_layers(
            left.selected,
            tokens=tokens,
            format=format,
            measure=True,
            trainable=trainable,
            shared_inputs=shared_inputs_of(model) if fuse_qkv else (),
        )
        plans = list(made.layers)
    fusing = {"fuse_qkv": fuse_qkv, "fuse_activation": fuse_activation}
    origin = _origin(left, ticket) if left.prepared or not record_of(model) else {}
    install_(model, left, plans, trainable=trainable, **fusing)
    asked = "auto" if isinstance(format, Plan) else format
    saveable_(model, format=asked, tokens=tokens, **fusing, **origin)
    return model


def install_(
    model: nn.Module,
    left: CompactedTargets,
    plans: Sequence[LayerPlan],
    *,
    trainable: bool,
    fuse_qkv: bool,
    fuse_activation: bool,
) -> None:
    """Put sparse layers, packed as planned, in the places of the selected ones; else as in `sparsify_`.

    Every layer is packed before the first is replaced. Raises ValueError for one that cannot be.
    """
    layers = {
        layer.key: _sparse(layer, chosen, trainable)
        for layer, chosen in zip(left.selected, plans, strict=True)
    }
    known = structure(model) if is_bert_like(model) else None
    activations = known.activations if known and fuse_activation and not trainable else {}
    fused = [(key, path) for key, path in activations.items() if key in layers]

    smaller = {change.name: change.smaller_linear() for change in left.others}
    for name, linear in smaller.items():
        move_hooks(model.get_submodule(name), linear)
        replace_module(model, name, linear)
    for layer in left.selected:
        sparse = layers[layer.key]
        move_hooks(model.get_submodule(layer.name), sparse)
        if layer.bias_mask is not None and sparse.bias is not None:
            with torch.no_grad():
                sparse.bias.masked_fill_(~layer.bias_mask.to(sparse.bias.device), 0)
        replace_module(model, layer.name, sparse)
    if left.prepared:
        left.prepared.shrink_attention_()
    for key, path in fused:
        _fuse_activation(model, layers[key], full_name_of(model, path))
    for group in shared_inputs_of(model) if fuse_qkv else ():
        _share_input([layers[key] for key in group if key in layers])


def shared_inputs_of(model: nn.Module) -> tuple[tuple[str, ...], ...]:
    """Keys of the layers of each group that is fed one tensor; none in models of unknown structure."""
    return structure(model).shared_inputs if is_bert_like(model) else ()


@torch.inference_mode(False)
def densify_(model: nn.Module) -> nn.Module:
    """Swap every `SparseLinear` of ``model`` for an `nn.Linear` of the same values, in place; returns it.

    Pruned weights are zeros. Hooks, training flags and bias Parameters stay, and fused activations take their
    places again. A model without sparse layers is left as it is. Raises ValueError for what is no model.
    """
    require_module(model)
    for name, module in list(model.named_modules()):
        if isinstance(module, FusedActivation):
            module.original.train(module.training)
            replace_module(model, name, module.original)
        elif isinstance(module, SparseLinear):
            if not name:
                raise ValueError("the model is itself a sparse layer: take its .weight and .bias")
            replace_module(model, name, _dense(module))
    saveable_(model)
    return model


def _origin(left: CompactedTargets, ticket: Ticket | None) -> dict[str, Any]:
    """What a folder says of where the sparsity comes from, and how much of it there is."""
    if left.prepared:
        sparsity = left.prepared.ticket.sparsity
    else:
        kept = sum(int(torch.count_nonzero(layer.mask)) for layer in left.selected)
        sparsity = 1 - kept / sum(layer.mask.numel() for layer in left.selected)
    origin = ticket.metadata if ticket is not None else {"method": "zeros in the weights"}
    return {"origin": origin, "sparsity": sparsity}


def _matching(plan: Plan, selected: Iterable[TargetLayer]) -> list[LayerPlan]:
    """The entries of ``plan`` in the order of ``selected``."""
    entries = {entry.key: entry for entry in plan.layers}
    shapes = {layer.key: tuple(layer.linear.weight.shape) for layer in selected}
    for key in entries.keys() ^ shapes.keys():
        raise ValueError(f"the plan is of another model or ticket: only one of them has {key}")
    for key, shape in shapes.items():
        if entries[key].shape != shape:
            raise ValueError(
                f"the plan is of another model: {key} is {shape} here, {entries[key].shape} there"
            )
    return [entries[key] for key in shapes]


def _sparse(layer: TargetLayer, chosen: LayerPlan, trainable: bool) -> SparseLinear:
    linear = layer.linear
    sparse = SparseLinear.from_linear(
        linear, layer.mask, chosen.format, trainable=trainable, **chosen.options
    )
    sparse.plan = replace(chosen, nbytes=sparse.nbytes)
    return sparse


def _dense(sparse: SparseLinear) -> nn.Linear:
    weight = sparse.weight.detach()
    linear = nn.Linear(sparse.in_features, sparse.out_features, bias=False, device="meta", dtype=weight.dtype)
    linear.weight = nn.Parameter(weight, requires_grad=sparse.weight_requires_grad)
    linear.register_parameter("bias", sparse.bias)
    linear.train(sparse.training)
    move_hooks(sparse, linear)
    return linear


def _fuse_activation(model: nn.Module, layer: SparseLinear, name: str) -> None:
    activation = model.get_submodule(name)
    kernel = activation_name(activation)
    hooks = [
        getattr(module, hooks) for module in (layer, activation) for hooks in HOOKS if "forward" in hooks
    ]
    if kernel is None:
        return
    if any(hooks):
        _note(layer, f"{kernel} not fused: hooks look at it")
        return
    layer.activation = kernel
    replace_module(model, name, FusedActivation(activation))
    _note(layer, f"{kernel} fused")


def _share_input(layers: list[SparseLinear]) -> None:
    if len(layers) > 1 and can_share([layer.packed for layer in layers]):
        shared = SharedInput()
        for layer in layers:
            layer.shared_input = shared
            shared.join(layer)
            _note(layer, f"{len(layers)} layers share one input")


def _note(layer: SparseLinear, note: str) -> None:
    layer.plan = replace(layer.plan, reason=f"{layer.plan.reason}; {note}")
