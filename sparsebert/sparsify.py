"""Swap the linear layers of a model for sparse ones, in place, and back; change the formats of sparse layers:
``sparsify_``, ``densify_`` and ``replan_``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from sparsebert.bert import (
    activation_name,
    canonical_key,
    is_adapted,
    is_bert_like,
    key_in,
    require_module,
    resolve,
    structure,
)
from sparsebert.bert import full_name as full_name_of
from sparsebert.compaction.install import compacted_linear, shrink_attentions_
from sparsebert.compaction.manifest import record_of
from sparsebert.cost.precision import PRECISIONS, require_tolerance
from sparsebert.hf.attach_quantizer import attach_quantizer_, recorded_option
from sparsebert.linear_layers import Filter, require_filter
from sparsebert.nn.fused_activation import FusedActivation, can_fuse
from sparsebert.nn.fused_qkv import fuse_qkv_, unfuse_qkv_
from sparsebert.nn.module_swap import HOOKS, move_hooks, replace_module
from sparsebert.nn.sparse_linear import SparseLinear
from sparsebert.planning.after_compaction import CompactedTargets, compacted_targets
from sparsebert.planning.engine_choice import (
    NO_OTHERS,
    EncoderDecision,
    carried_encoder_plan,
    decide_encoder,
    require_fuse,
    set_encoder_plan_,
)
from sparsebert.planning.plan import LayerPlan, Plan
from sparsebert.planning.planner import (
    check_options,
    plan_layers,
    plans_for_engines,
    require_measure,
    shared_inputs_of,
)
from sparsebert.planning.target_layers import TargetLayer, outline
from sparsebert.tickets.ticket import Ticket
from sparsebert_kernels.formats.dense import DEFAULT_TOKENS
from sparsebert_kernels.ops import can_share

# Ends of the notes that fusing adds to the reason in a layer's plan.
SHARED_NOTE = "layers share one input"
FUSED_NOTE = " fused"
UNFUSED_NOTE = "not fused because of forward hooks"
FUSING_NOTES = (SHARED_NOTE, FUSED_NOTE, UNFUSED_NOTE)


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
    measure: bool = True,
    tolerance: str = "fp32",
    fuse: bool | None = None,
) -> nn.Module:
    """Swap the pruned ``nn.Linear`` layers of ``model`` for ``SparseLinear``, in place.

    Only the ticket's layers change or, without a ticket, the layers with zeros. The values of masked weights
    are lost. Every layer, fused or not, remains a module in its place: it keeps its name, state_dict keys
    (``weight``, dense, and ``bias``), hooks, training flag and bias Parameter, and its ``.weight`` is the
    dense matrix, computed on access. A ``FusedActivation`` takes the place of a fused activation module and
    passes the layer's output through. Layers or activations with forward hooks are not fused, so that hooks
    see the same tensors as before.

    ``plan(model)`` returns the plan that the model follows. ``save_pretrained`` writes the masks and kept
    weights of a Hugging Face model, and ``from_pretrained`` returns the sparse model.

    Args:
        model: The model to change.
        ticket: The masks; without one, the zeros in the weights.
        format: "auto" (the planner chooses a format for each layer), the name of a format, or a ``Plan`` to
            follow.
        tokens: Rows of x (batch times sequence length) in a call of a layer; 128 by default, or as in the
            ``Plan``.
        filter: ``filter(name, linear) -> bool`` selects layers. It works on any model and restricts a ticket.
        fuse_qkv: Compute the query, key and value of an attention in one native call where that is faster.
            Two forward hooks on the attention do it; ``densify_`` removes them.
        fuse_activation: Let the kernel of an up-projection apply the ReLU or GELU after it.
        trainable: Make the kept weights Parameters; only for formats that can be trained, without fused
            activations.
        compact: Remove pruned-out neurons, heads and head dimensions first, as
            ``sparsebert.compact.compact_`` does. True demands it and False forbids it. None compacts if the
            ``Plan`` did; without a ``Plan``, if the model allows it, there is no ``filter`` and the layers
            are not ``trainable``. Compaction changes the shapes of layers and of their entries in the
            ``state_dict``; ``plan(model)`` lists them.
        measure: With format "auto", time the formats on this machine, as ``plan`` does. If False, nothing is
            timed: the cost model decides with built-in costs, in the same way in every process.
        tolerance: The lowest precision in which layers may compute on a CPU: "fp32", "bf16" or "int8".
            Parameters, outputs and saved files keep their dtypes and exact values; a layer that computes in a
            lower precision than its own holds its exact weights beside the packed ones. The planner chooses
            the precision of each layer with its format, by time.
        fuse: Let the encoder run in one native call, as ``sparsebert.fuse_`` does. None does so where its
            signature and answers stay the same and it is not slower: a float32 model of a known family on a
            CPU, not ``trainable``, without hooks inside the encoder. Hidden states at padding are then zero;
            models that answer questions, which compare the positions of a text with padding, are therefore
            left out. False never fuses, True demands it. ``plan(model)`` says what was chosen, and why.

    Returns:
        The model.

    Raises:
        ValueError: The model is sparse already or has nothing to sparsify, the ticket or plan belongs to
            another model, an option is unknown, a layer cannot be packed (see
            ``sparsebert.planning.target_layers.select_target_layers``), or ``fuse=True`` is not possible. The
            model is then unchanged.
    """
    tokens = DEFAULT_TOKENS if tokens is None else tokens
    check_options("auto" if isinstance(format, Plan) else format, tokens)
    require_measure(measure)
    require_tolerance(tolerance)
    require_module(model)
    require_fuse(fuse, model, trainable)
    if isinstance(format, Plan) and format.layers:
        tokens = format.layers[0].tokens
        compact = any(layer.removal_note for layer in format.layers) if compact is None else compact
    targets = compacted_targets(model, ticket, filter, tokens=tokens, compact=compact, trainable=trainable)
    requested = "auto" if isinstance(format, Plan) else format
    timed = measure and format == "auto"
    if isinstance(format, Plan):
        plans, others = _matching(model, format, targets.layers), NO_OTHERS
        tolerance = _tolerance_of(format)
    else:
        planned = plan_layers(
            targets.layers,
            tokens=tokens,
            format=format,
            measure=measure,
            trainable=trainable,
            shared_inputs=shared_inputs_of(model) if fuse_qkv else (),
            tolerance=tolerance,
        )
        plans = list(planned.layers)
        others = plans_for_engines(
            planned, targets.layers, model, format=format, measure=measure, tolerance=tolerance
        )
    decision = decide_encoder(
        model,
        plans,
        tokens=tokens,
        fuse=fuse,
        trainable=trainable,
        measure=timed,
        saved=_way_of(format),
        tolerance=tolerance,
        others=others,
    )
    fusing = {"fuse_qkv": fuse_qkv, "fuse_activation": fuse_activation}
    origin = _origin(targets, ticket) if targets.compaction or not record_of(model) else {}
    plans = list(decision.layers) if decision else plans
    install_(model, targets, plans, trainable=trainable, **fusing)
    if decision:
        settle_(model, decision, timed=timed, fuse_qkv=fuse_qkv)
    attach_quantizer_(
        model,
        format=requested,
        tokens=tokens,
        tolerance=tolerance,
        fuse=fuse,
        way=decision.plan.way if decision else "",
        **fusing,
        **origin,
    )
    return model


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


@torch.inference_mode(False)
def replan_(
    model: nn.Module,
    *,
    format: str | Plan = "auto",
    tokens: int | None = None,
    filter: Callable[[str, SparseLinear], bool] | None = None,
    measure: bool = True,
    tolerance: str | None = None,
) -> nn.Module:
    """Choose the formats of a sparse model's layers again, on this machine, and repack the layers in place.

    Call it where the model will run, for instance after loading a folder that another machine saved, after
    ``torch.set_num_threads``, or for another number of tokens. Values, hooks and Parameters stay, and so do
    fused activations, the shapes of a compacted model and masks (but see ``SparseLinear.mask`` on kept
    weights that are zero); an optimizer of a trainable model must be made anew. No forward pass may run
    meanwhile.

    Args:
        model: The sparse model to change, or a part of it.
        format: As for ``sparsify_``.
        tokens: Rows of x in a call of a layer; by default as in the model's plan.
        filter: ``filter(name, layer) -> bool`` selects the sparse layers to repack.
        measure: As for ``sparsify_``.
        tolerance: As for ``sparsify_``; by default as in the model's plan.

    Returns:
        The model.

    Raises:
        ValueError: The model has no sparse layers, the plan belongs to another model, an option is unknown,
            a layer cannot have the format, or it is on the meta device. The model is then unchanged.
    """
    require_module(model)
    require_filter(filter)
    require_measure(measure)
    layers = _sparse_layers(model)
    selected = {key: name for key, (name, layer) in layers.items() if filter is None or filter(name, layer)}
    if not selected:
        lack = "picked by the filter" if layers else "to choose a format for: call sparsify_ first"
        raise ValueError(f"{type(model).__name__} has no sparse layer {lack}")
    carried = [plan for key in selected if (plan := layers[key][1].plan) is not None]
    if tokens is None:
        tokens = next((plan.tokens for plan in carried), DEFAULT_TOKENS)
    if tolerance is None:
        tolerance = next((plan.tolerance for plan in carried), "fp32")
    check_options("auto" if isinstance(format, Plan) else format, tokens)
    require_tolerance(tolerance)
    configured = record_of(model).get("linears", {})
    targets = [_sparse_target(key, *layers[key], configured.get(key)) for key in selected]
    others = NO_OTHERS
    if isinstance(format, Plan):
        tokens = format.layers[0].tokens if format.layers else tokens
        tolerance = _tolerance_of(format)
        entries = dict(zip(selected, _matching(model, format, targets), strict=True))
    else:
        planned = [
            plan_layers(
                [target for target in targets if layers[target.key][1].trainable == trainable],
                tokens=tokens,
                format=format,
                measure=measure,
                trainable=trainable,
                shared_inputs=shared_inputs_of(model),
                tolerance=tolerance,
            )
            for trainable in (False, True)  # a model made by hand may have both kinds
        ]
        entries = {entry.key: entry for each in planned for entry in each.layers}
        whole = Plan(tuple(entries[target.key] for target in targets), "")
        others = plans_for_engines(whole, targets, model, format=format, measure=measure, tolerance=tolerance)
    fuse_qkv = recorded_option(model, "fuse_qkv", default=True)
    _repack_(model, entries, fuse_qkv=fuse_qkv)
    way = carried_encoder_plan(model) if filter is None else None
    decision = way and decide_encoder(
        model,
        list(entries.values()),
        tokens=tokens,
        fuse=way.fuse,
        trainable=any(layer.trainable for _, layer in layers.values()),
        measure=measure and format == "auto",
        saved=_way_of(format),
        tolerance=tolerance,
        others=others,
    )
    if decision:
        settle_(model, decision, timed=measure and format == "auto", fuse_qkv=fuse_qkv)
    requested = {"format": "auto" if isinstance(format, Plan) else format} if filter is None else {}
    if decision:
        requested["way"] = decision.plan.way
    attach_quantizer_(model, tokens=tokens, tolerance=tolerance, **requested)
    return model


def settle_(model: nn.Module, decision: EncoderDecision, *, timed: bool, fuse_qkv: bool) -> None:
    """Let the encoder run in the fastest way, ``timed`` or predicted, with its layers packed for it."""
    if timed:
        decision.settle_by_timing()
    entries = {entry.key: entry for entry in decision.layers}
    layers = {key: layer for key, (_, layer) in _sparse_layers(model).items()}
    others = {
        key: entry
        for key, entry in entries.items()
        if key in layers and layers[key].recipe != (entry.format, entry.options)
    }
    if others:
        _repack_(model, others, fuse_qkv=fuse_qkv)
    decision.apply_()


def _repack_(model: nn.Module, entries: Mapping[str, LayerPlan], *, fuse_qkv: bool) -> None:
    """Repack sparse layers as planned, by key. Every layer is packed before the first one changes.

    Raises:
        ValueError: A layer cannot have its format. The model is then unchanged.
    """
    layers = {key: layer for key, (_, layer) in _sparse_layers(model).items()}
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


def _way_of(format: str | Plan) -> str:
    return format.encoder.way if isinstance(format, Plan) and format.encoder else ""


def _tolerance_of(plan: Plan) -> str:
    """Return the lowest precision that a plan allows."""
    return max((layer.tolerance for layer in plan.layers), key=PRECISIONS.index, default="fp32")


def _sparse_layers(model: nn.Module) -> dict[str, tuple[str, SparseLinear]]:
    """Return full path and layer of every sparse layer, by its key in a ticket."""
    bert_like = is_bert_like(model)
    return {
        canonical_key(name) if bert_like else name: (name, module)
        for name, module in model.named_modules()
        if isinstance(module, SparseLinear)
    }


def _sparse_target(key: str, name: str, layer: SparseLinear, configured: Sequence[int] | None) -> TargetLayer:
    """Return a sparse layer as the planner sees it; ``configured`` is its shape before compaction."""
    if layer.device.type == "meta":
        raise ValueError(
            f"{name or 'the layer'} is on the meta device, without its mask: load the model first"
        )
    like = torch.empty(0, dtype=layer.dtype, device=layer.device)
    return TargetLayer(
        key=key,
        name=name,
        linear=outline((layer.out_features, layer.in_features), like, layer.bias),
        mask=layer.mask,
        removal_note=layer.plan.removal_note if layer.plan is not None else "",
        configured=math.prod(configured) if configured else None,
    )


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


@torch.inference_mode(False)
def densify_(model: nn.Module) -> nn.Module:
    """Swap every ``SparseLinear`` of ``model`` for an ``nn.Linear`` of the same values, in place; returns it.

    Pruned weights become zeros. Hooks, training flags and bias Parameters stay, fused activations return to
    their places, and a fused encoder runs its layers one by one again. A model without sparse layers
    otherwise does not change. Raises ValueError if ``model`` is not a module or is itself a sparse layer.
    """
    require_module(model)
    set_encoder_plan_(model, None)
    for name, module in list(model.named_modules()):
        unfuse_qkv_(module)
        if getattr(module, "fused_activation", None):  # of ``sparsebert.hf.lora``
            module.fused_activation = "none"
        if isinstance(module, FusedActivation):
            module.original.train(module.training)
            replace_module(model, name, module.original)
        elif isinstance(module, SparseLinear):
            if not name:
                raise ValueError("the model is itself a sparse layer: use its .weight and .bias")
            replace_module(model, name, _dense(module))
    attach_quantizer_(model, tolerance="fp32", fuse=False, way="")
    return model


def _origin(targets: CompactedTargets, ticket: Ticket | None) -> dict[str, Any]:
    """Return the source and the amount of the sparsity, to save with the model."""
    if targets.compaction:
        sparsity = targets.compaction.ticket.sparsity
    else:
        kept = sum(int(torch.count_nonzero(layer.mask)) for layer in targets.layers)
        sparsity = 1 - kept / sum(layer.mask.numel() for layer in targets.layers)
    origin = ticket.metadata if ticket is not None else {"method": "zeros in the weights"}
    return {"origin": origin, "sparsity": sparsity}


def _matching(model: nn.Module, plan: Plan, layers: Iterable[TargetLayer]) -> list[LayerPlan]:
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


def _sparse(target: TargetLayer, layer_plan: LayerPlan, trainable: bool) -> SparseLinear:
    sparse = SparseLinear.from_linear(
        target.linear, target.mask, layer_plan.format, trainable=trainable, **layer_plan.options
    )
    sparse.plan = _followed(layer_plan, sparse)
    return sparse


def _followed(layer_plan: LayerPlan, layer: SparseLinear) -> LayerPlan:
    """Return the plan of a packed layer: ``layer_plan`` without notes on the fusing in an earlier model."""
    notes = [note for note in layer_plan.reason.split("; ") if not note.endswith(FUSING_NOTES)]
    return replace(layer_plan, nbytes=layer.nbytes, reason="; ".join(notes))


def _dense(sparse: SparseLinear) -> nn.Linear:
    weight = sparse.weight.detach()
    linear = nn.Linear(sparse.in_features, sparse.out_features, bias=False, device="meta", dtype=weight.dtype)
    linear.weight = nn.Parameter(weight, requires_grad=sparse.weight_requires_grad)
    linear.register_parameter("bias", sparse.bias)
    linear.train(sparse.training)
    move_hooks(sparse, linear)
    return linear


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


def _append_reason(layer: SparseLinear, note: str) -> None:
    if layer.plan is not None:
        layer.plan = replace(layer.plan, reason=f"{layer.plan.reason}; {note}")
