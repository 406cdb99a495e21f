"""Choose the formats of a sparse model again, in place: ``replan_``."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import nn

from sparsebert.bert import require_module
from sparsebert.compaction.manifest import record_of
from sparsebert.cost.default_tokens import default_tokens
from sparsebert.cost.precision import require_tolerance
from sparsebert.hf.attach_quantizer import attach_quantizer_, recorded_option
from sparsebert.linear_layers import require_filter
from sparsebert.nn.sparse_linear import SparseLinear
from sparsebert.planning.layer_planner import plan_layers
from sparsebert.planning.plan import Plan
from sparsebert.planning.planner import (
    check_options,
    plans_for_engines,
    require_measure,
    shared_inputs_of,
)
from sparsebert.planning.target_layers import TargetLayer, outline


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
        tokens: Rows of x in a call of a layer; by default as in the model's plan, without one as for
            ``sparsify_``.
        filter: ``filter(name, layer) -> bool`` selects the sparse layers to repack.
        measure: As for ``sparsify_``.
        tolerance: As for ``sparsify_``; by default as in the model's plan.

    Returns:
        The model.

    Raises:
        ValueError: The model has no sparse layers, the plan belongs to another model, an option is unknown,
            a layer cannot have the format, or it is on the meta device. The model is then unchanged.
    """
    # Late: importing sparsebert stays quick.
    from sparsebert.planning.engine_choice import NO_OTHERS, carried_encoder_plan, decide_encoder
    from sparsebert.planning.install import matching_entries, repack_, settle_, sparse_layers

    require_module(model)
    require_filter(filter)
    require_measure(measure)
    layers = sparse_layers(model)
    selected = {key: name for key, (name, layer) in layers.items() if filter is None or filter(name, layer)}
    if not selected:
        lack = "picked by the filter" if layers else "to choose a format for: call sparsify_ first"
        raise ValueError(f"{type(model).__name__} has no sparse layer {lack}")
    selected_layers = [layers[key][1] for key in selected]
    if tokens is None:
        tokens = _planned_tokens(selected_layers)
    if tolerance is None:
        tolerance = next((layer.plan.tolerance for layer in selected_layers if layer.plan), "fp32")
    check_options("auto" if isinstance(format, Plan) else format, tokens)
    require_tolerance(tolerance)
    configured = record_of(model).get("linears", {})
    targets = [_sparse_target(key, *layers[key], configured.get(key)) for key in selected]
    others = NO_OTHERS
    if isinstance(format, Plan):
        tokens = format.layers[0].tokens if format.layers else tokens
        tolerance = format.tolerance
        entries = dict(zip(selected, matching_entries(model, format, targets), strict=True))
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
                activations={key: layers[key][1].activation for key in selected},
            )
            for trainable in (False, True)  # a model made by hand may have both kinds
        ]
        entries = {entry.key: entry for each in planned for entry in each.layers}
        whole = Plan(tuple(entries[target.key] for target in targets), "")
        others = plans_for_engines(whole, targets, model, format=format, measure=measure, tolerance=tolerance)
    fuse_qkv = recorded_option(model, "fuse_qkv", default=True)
    repack_(model, entries, fuse_qkv=fuse_qkv)
    way = carried_encoder_plan(model) if filter is None else None
    decision = way and decide_encoder(
        model,
        list(entries.values()),
        tokens=tokens,
        fuse=way.fuse,
        trainable=any(layer.trainable for _, layer in layers.values()),
        measure=measure and format == "auto",
        saved=format.way if isinstance(format, Plan) else "",
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


def _planned_tokens(layers: Sequence[SparseLinear]) -> int:
    """Return the tokens that layers are planned for; those without a plan have the default of their device.

    A sparse layer may have no parameters, by which ``on_gpu`` tells the device of a model.
    """
    gpu = any(layer.device.type == "cuda" for layer in layers)
    return next((layer.plan.tokens for layer in layers if layer.plan), default_tokens(gpu))


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
