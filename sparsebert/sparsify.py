"""Swap the linear layers of a model for sparse ones, in place, and back: ``sparsify_`` and ``densify_``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from sparsebert.bert import require_module
from sparsebert.compaction.manifest import record_of
from sparsebert.conv1d import conv1d_of
from sparsebert.cost.default_tokens import default_tokens, on_gpu
from sparsebert.cost.precision import require_tolerance
from sparsebert.hf.attach_quantizer import attach_quantizer_
from sparsebert.linear_layers import Filter
from sparsebert.nn.module_swap import move_hooks, replace_module
from sparsebert.nn.sparse_linear import SparseLinear
from sparsebert.planning.layer_planner import plan_layers
from sparsebert.planning.plan import Plan
from sparsebert.planning.planner import (
    check_options,
    fused_activations,
    plans_for_engines,
    require_measure,
    shared_inputs_of,
)
from sparsebert.tickets.ticket import Ticket

if TYPE_CHECKING:
    from sparsebert.planning.after_compaction import CompactedTargets


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
    """Swap the pruned linear layers of ``model`` for ``SparseLinear``, in place.

    They are layers of type ``nn.Linear`` or, as in GPT-2, the ``Conv1D`` of transformers, whose entries in
    the ``state_dict`` keep their layout, [in, out].

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
        tokens: Rows of x (batch times sequence length) in a call of a layer; by default as in the ``Plan``,
            else 4096 on a GPU and 128 on a CPU.
        filter: ``filter(name, linear) -> bool`` selects layers. It works on any model and restricts a ticket.
        fuse_qkv: Compute the query, key and value of an attention in one native call where that is faster.
            Two forward hooks on the attention do it; ``densify_`` removes them.
        fuse_activation: Let the kernel of an up-projection apply the ReLU or GELU after it.
        trainable: Make the kept weights Parameters; only for formats that can be trained, without fused
            activations.
        compact: Remove pruned-out neurons, heads and head dimensions first, as
            ``sparsebert.compact.compact_`` does. True demands it and False forbids it. None compacts if the
            ``Plan`` did; without a ``Plan``, if the model allows it, there is no ``filter``, the layers are
            not ``trainable``, and the layers are not predicted to be slower for it, as they are where the
            removal of single neurons cuts up the blocks of a mask. Compaction changes the shapes of layers
            and of their entries in the ``state_dict``; ``plan(model)`` lists them.
        measure: With format "auto", time the formats on this machine, as ``plan`` does. If False, nothing is
            timed: the cost model decides with built-in costs, in the same way in every process.
        tolerance: The lowest precision in which layers may compute on a CPU: "fp32", "bf16" or "int8".
            Parameters, outputs and saved files keep their dtypes and exact values; a layer that computes in a
            lower precision than its own holds its exact weights beside the packed ones. The planner chooses
            the precision of each layer with its format, by time. Below fp32, whole encoders may compute in
            fp16 on CPUs with AVX512-FP16: fp16 rounds less than bf16, and what leaves its range is computed
            in fp32.
        fuse: Let the encoder run fused, as ``sparsebert.fuse_`` does. None does so where its signature and
            answers stay the same and it is not slower: a model of a known family, in float32 or bfloat16 on a
            CPU or on a GPU, not ``trainable``, without hooks inside the encoder. Hidden states at padding
            are then zero; models that answer questions, which compare the positions of a text with padding,
            are therefore left out. False never fuses, True demands it. ``plan(model)`` says what was chosen,
            and why.

    Returns:
        The model.

    Raises:
        ValueError: The model is sparse already or has nothing to sparsify, the ticket or plan belongs to
            another model, an option is unknown, a layer cannot be packed (see
            ``sparsebert.planning.target_layers.select_target_layers``), or ``fuse=True`` is not possible. The
            model is then unchanged.
    """
    # Late: importing sparsebert stays quick.
    from sparsebert.planning.after_compaction import compacted_targets
    from sparsebert.planning.engine_choice import NO_OTHERS, decide_encoder, require_fuse
    from sparsebert.planning.install import install_, matching_entries, settle_

    require_module(model)
    gpu = on_gpu(model)
    tokens = default_tokens(gpu) if tokens is None else tokens
    check_options("auto" if isinstance(format, Plan) else format, tokens)
    require_measure(measure)
    require_tolerance(tolerance)
    require_fuse(fuse, model, trainable)
    if isinstance(format, Plan) and format.layers:
        tokens = format.layers[0].tokens
        compact = any(layer.removal_note for layer in format.layers) if compact is None else compact
    targets = compacted_targets(
        model,
        ticket,
        filter,
        tokens=tokens,
        compact=compact,
        trainable=trainable,
        format=format if isinstance(format, str) else "",
        tolerance=tolerance,
    )
    requested = "auto" if isinstance(format, Plan) else format
    timed = measure and format == "auto"
    if isinstance(format, Plan):
        plans, others = matching_entries(model, format, targets.layers), NO_OTHERS
        tolerance = format.tolerance
    else:
        planned = plan_layers(
            targets.layers,
            tokens=tokens,
            format=format,
            measure=measure,
            trainable=trainable,
            shared_inputs=shared_inputs_of(model) if fuse_qkv else (),
            tolerance=tolerance,
            activations=fused_activations(model) if gpu and fuse_activation and not trainable else {},
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
        saved=format.way if isinstance(format, Plan) else "",
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


@torch.inference_mode(False)
def densify_(model: nn.Module) -> nn.Module:
    """Swap every ``SparseLinear`` of ``model`` for a dense layer of the same values, in place; returns it.

    The dense layer is an ``nn.Linear``, or a ``Conv1D`` where ``sparsify_`` replaced one.

    Pruned weights become zeros. Hooks, training flags and bias Parameters stay, fused activations return to
    their places, and a fused encoder runs its layers one by one again. A model without sparse layers
    otherwise does not change. Raises ValueError if ``model`` is not a module or is itself a sparse layer.
    """
    from sparsebert.nn.fused_activation import FusedActivation
    from sparsebert.nn.fused_qkv import unfuse_qkv_
    from sparsebert.planning.engine_choice import set_encoder_plan_

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


def _dense(sparse: SparseLinear) -> nn.Module:
    weight = sparse.weight.detach()
    linear = nn.Linear(sparse.in_features, sparse.out_features, bias=False, device="meta", dtype=weight.dtype)
    linear.weight = nn.Parameter(weight, requires_grad=sparse.weight_requires_grad)
    linear.register_parameter("bias", sparse.bias)
    dense = linear if sparse.conv1d is None else conv1d_of(linear, sparse.conv1d)
    dense.train(sparse.training)
    move_hooks(sparse, dense)
    return dense
