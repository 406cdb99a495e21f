"""Change the layers of a model as planned: swap them for sparse ones, pack sparse ones again, fuse."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

import torch
from torch import nn

from sparsebert.bert import (
    activation_name,
    canonical_key,
    is_adapted,
    is_bert_like,
    key_in,
    resolve,
    structure,
)
from sparsebert.bert import full_name as full_name_of
from sparsebert.compaction.install import compacted_linear, shrink_attentions_
from sparsebert.nn.fused_activation import FusedActivation, can_fuse
from sparsebert.nn.fused_qkv import fuse_qkv_, unfuse_qkv_
from sparsebert.nn.module_swap import HOOKS, move_hooks, replace_module
from sparsebert.nn.sparse_linear import SparseLinear
from sparsebert.planning.after_compaction import CompactedTargets
from sparsebert.planning.engine_choice import EncoderDecision
from sparsebert.planning.plan import LayerPlan, Plan
from sparsebert.planning.planner import shared_inputs_of
from sparsebert.planning.target_layers import TargetLayer
from sparsebert_kernels.ops import can_share

# Ends of the notes that fusing adds to the reason in a layer's plan.
SHARED_NOTE = "layers share one input"
FUSED_NOTE = " fused"
UNFUSED_NOTE = "not fused because of forward hooks"
FUSING_NOTES = (SHARED_NOTE, FUSED_NOTE, UNFUSED_NOTE)


def install_(
    model: nn.Module,
    targets: CompactedTargets,
    plans: Sequence[LayerPlan],
    *,
    trainable: bool,
    fuse_qkv: bool,
    fuse_activation: bool,
) -> None:
    """Replace the target layers with sparse layers, packed as planned; options as for ``sparsify_``.

    Every layer is packed before the first one is replaced. Raises ValueError for a layer that cannot be
    packed.
    """
    layers = {
        target.key: _sparse(target, layer_plan, trainable)
        for target, layer_plan in zip(targets.layers, plans, strict=True)
    }
    encoder = structure(model) if is_bert_like(model) else None
    activations = encoder.activations if encoder and fuse_activation and not trainable else {}
    # The output of an adapter is added before the activation.
    adapted = {target.key for target in targets.layers if is_adapted(target.name)}
    fused = [
        (key, path)
        for key, path in activations.items()
        if key in layers and key not in adapted and _can_fuse(model, key, path)
    ]

    compacted = {matrix.name: compacted_linear(matrix) for matrix in targets.dense_matrices}
    for name, linear in compacted.items():
        move_hooks(model.get_submodule(name), linear)
        replace_module(model, name, linear)
    for target in targets.layers:
        sparse = layers[target.key]
        move_hooks(model.get_submodule(target.name), sparse)
        if target.bias_mask is not None and sparse.bias is not None:
            with torch.no_grad():
                sparse.bias.masked_fill_(~target.bias_mask.to(sparse.bias.device), 0)
        replace_module(model, target.name, sparse)
    if targets.compaction:
        shrink_attentions_(targets.compaction)
    for key, path in fused:
        _fuse_activation(model, layers[key], full_name_of(model, path))
    for keys in shared_inputs_of(model) if fuse_qkv else ():
        _fuse_qkv(model, {key: layers[key] for key in keys if key in layers})


def settle_(model: nn.Module, decision: EncoderDecision, *, timed: bool, fuse_qkv: bool) -> None:
    """Let the encoder run in the fastest way, ``timed`` or predicted, with its layers packed for it."""
    if timed:
        decision.settle_by_timing()
    entries = {entry.key: entry for entry in decision.layers}
    layers = {key: layer for key, (_, layer) in sparse_layers(model).items()}
    others = {
        key: entry
        for key, entry in entries.items()
        if key in layers and layers[key].recipe != (entry.format, entry.options)
    }
    if others:
        repack_(model, others, fuse_qkv=fuse_qkv)
    decision.apply_()


def repack_(model: nn.Module, entries: Mapping[str, LayerPlan], *, fuse_qkv: bool) -> None:
    """Repack sparse layers as planned, by key. Every layer is packed before the first one changes.

    Raises:
        ValueError: A layer cannot have its format. The model is then unchanged.
    """
    layers = {key: layer for key, (_, layer) in sparse_layers(model).items()}
    switches = [layers[key].prepare_format(entry.format, **entry.options) for key, entry in entries.items()]
    for switch in switches:
        switch()
    for key, entry in entries.items():
        layer = layers[key]
        layer.plan = _followed(entry, layer)
        if layer.activation != "none":
            _append_reason(layer, layer.activation + FUSED_NOTE)
    if fuse_qkv:
        _fuse_qkv_again(model, layers)


def matching_entries(model: nn.Module, plan: Plan, layers: Iterable[TargetLayer]) -> list[LayerPlan]:
    """Return the entries of ``plan`` in the order of ``layers``."""
    shapes = {layer.key: tuple(layer.linear.weight.shape) for layer in layers}
    # Full paths, which are keys where there is no ticket, may begin with a wrapper or the base model's name.
    spellings = {key_in(model, key): key for key in shapes}
    entries = {
        entry.key if entry.key in shapes else spellings.get(key_in(model, entry.key), entry.key): entry
        for entry in plan.layers
    }
    for key in entries.keys() ^ shapes.keys():
        owner = "the plan" if key in entries else "the model"
        raise ValueError(f"the plan was made for another model or ticket: only {owner} has {key}")
    for key, shape in shapes.items():
        if entries[key].shape != shape:
            raise ValueError(
                f"the plan was made for another model: {key} has shape {entries[key].shape} in the plan, "
                f"{shape} in the model"
            )
    return [entries[key] for key in shapes]


def sparse_layers(model: nn.Module) -> dict[str, tuple[str, SparseLinear]]:
    """Return full path and layer of every sparse layer, by its key in a ticket."""
    bert_like = is_bert_like(model)
    return {
        canonical_key(name) if bert_like else name: (name, module)
        for name, module in model.named_modules()
        if isinstance(module, SparseLinear)
    }


def _sparse(target: TargetLayer, layer_plan: LayerPlan, trainable: bool) -> SparseLinear:
    sparse = SparseLinear.from_linear(
        target.linear, target.mask, layer_plan.format, trainable=trainable, **layer_plan.options
    )
    sparse.plan = _followed(layer_plan, sparse)
    sparse.conv1d = target.conv1d
    return sparse


def _followed(layer_plan: LayerPlan, layer: SparseLinear) -> LayerPlan:
    """Return the plan of a packed layer: ``layer_plan`` without notes on the fusing in an earlier model."""
    notes = [note for note in layer_plan.reason.split("; ") if not note.endswith(FUSING_NOTES)]
    return replace(layer_plan, nbytes=layer.nbytes, reason="; ".join(notes))


def _can_fuse(model: nn.Module, up: str, activation: str) -> bool:
    parent = resolve(model, activation.rpartition(".")[0])
    return can_fuse(parent, resolve(model, up), resolve(model, activation))


def _fuse_activation(model: nn.Module, layer: SparseLinear, name: str) -> None:
    activation = model.get_submodule(name)
    kernel = activation_name(activation)
    hooks = [
        getattr(module, hooks) for module in (layer, activation) for hooks in HOOKS if "forward" in hooks
    ]
    if kernel is None:
        return
    if any(hooks):
        _append_reason(layer, f"{kernel} {UNFUSED_NOTE}")
        return
    layer.activation = kernel
    replace_module(model, name, FusedActivation(activation))
    _append_reason(layer, kernel + FUSED_NOTE)


def _fuse_qkv(model: nn.Module, layers: dict[str, SparseLinear]) -> None:
    paths = [full_name_of(model, key).rpartition(".") for key in layers]
    attentions = {parent for parent, _, _ in paths}
    if len(layers) < 2 or len(attentions) > 1 or not can_share([layer.packed for layer in layers.values()]):
        return
    fuse_qkv_(model.get_submodule(attentions.pop()), [name for _, _, name in paths])
    for layer in layers.values():
        _append_reason(layer, f"{len(layers)} {SHARED_NOTE}")


def _fuse_qkv_again(model: nn.Module, layers: dict[str, SparseLinear]) -> None:
    """Fuse the query, key and value of each attention wherever their present formats allow it."""
    for module in model.modules():
        unfuse_qkv_(module)
    for layer in layers.values():
        if layer.plan is not None:
            notes = [note for note in layer.plan.reason.split("; ") if not note.endswith(SHARED_NOTE)]
            layer.plan = replace(layer.plan, reason="; ".join(notes))
    for keys in shared_inputs_of(model):
        _fuse_qkv(model, {key: layers[key] for key in keys if key in layers})


def _append_reason(layer: SparseLinear, note: str) -> None:
    if layer.plan is not None:
        layer.plan = replace(layer.plan, reason=f"{layer.plan.reason}; {note}")
