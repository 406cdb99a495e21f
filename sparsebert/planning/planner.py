"""The plan of a model: the formats of its layers, after compaction, and the way in which its encoder runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from sparsebert.bert import activation_name, is_bert_like, require_module, resolve, structure
from sparsebert.cost import gpu_roofline
from sparsebert.cost.candidates import format_candidates
from sparsebert.cost.default_tokens import default_tokens, on_gpu
from sparsebert.cost.engine_cost import seconds_in_layout
from sparsebert.cost.precision import require_tolerance
from sparsebert.linear_layers import Filter
from sparsebert.nn.sparse_linear import SparseLinear
from sparsebert.planning.layer_planner import describe_machine, lacking_precisions, plan_layers
from sparsebert.planning.plan import LayerPlan, Plan
from sparsebert.planning.target_layers import TargetLayer
from sparsebert.tickets.ticket import Ticket
from sparsebert_kernels import formats
from sparsebert_kernels.errors import unknown
from sparsebert_kernels.formats import RowPanelSparse
from sparsebert_kernels.formats.dense import DEFAULT_TOKENS

if TYPE_CHECKING:
    from sparsebert.planning.engine_choice import OtherPlans


def plan(
    model: nn.Module,
    ticket: Ticket | None = None,
    *,
    tokens: int | None = None,
    format: str = "auto",
    measure: bool = True,
    filter: Filter | None = None,
    trainable: bool = False,
    device: str | None = None,
    compact: bool | None = None,
    tolerance: str = "fp32",
    fuse: bool | None = None,
) -> Plan:
    """Choose a packed format for each layer that ``ticket`` (or the zeros in the weights) makes sparse.

    The cost model predicts the time of every format from the mask, the dtype and ``tokens``. With
    ``measure``, the costs are measured on this machine and kept in a cache file, and each choice is timed in
    alternation with prepacked dense: a layer that gains less than 5 % stays dense. A timing on a busy machine
    is repeated; if the machine stays busy, the cost model decides, and the plan says for which layers.
    Without ``measure``, nothing is timed: the cost model decides with built-in costs, and the plan depends
    only on its arguments and the instruction set.

    Layers on a GPU are predicted by a roofline model and timed inside CUDA graphs.

    Args:
        model: The model; it is only read. For a model that is sparse or fused already, the plan of its sparse
            layers and of its encoder is returned, and no options apply.
        ticket: The masks; without one, the zeros in the weights.
        tokens: Rows of x (batch times sequence length) in a call of a layer; by default 4096 on a GPU and 128
            on a CPU.
        format: "auto", or the one format to use for every layer.
        measure: Measure costs and time the choices on this machine.
        filter: ``filter(name, linear) -> bool`` selects the layers to plan.
        trainable: Consider only formats whose kept weights can be trained.
        device: A GPU to plan for instead of the model's device, such as "h200" or "a100"; its times are
            modelled, not measured.
        compact: As in ``sparsify_``. Layers are planned in their shapes after compaction, and the plan lists
            the parts that compaction removes.
        tolerance: As in ``sparsify_``.
        fuse: As in ``sparsify_``. How the encoder runs is predicted; ``sparsify_`` times it.

    Raises:
        ValueError: See ``select_target_layers``; or the format or device is unknown, ``tokens`` is not a
            positive integer, or the model is sparse and an option asks for another plan.
    """
    # Late: importing sparsebert stays quick.
    from sparsebert.planning.after_compaction import compacted_targets
    from sparsebert.planning.engine_choice import carried_encoder_plan, decide_encoder, require_fuse

    target = None if device is None else gpu_roofline.named(device)
    require_module(model)
    gpu = target is not None or on_gpu(model)
    named, tokens = tokens, default_tokens(gpu) if tokens is None else tokens
    check_options(format, tokens)
    require_measure(measure)
    require_tolerance(tolerance)
    way = carried_encoder_plan(model)
    if ticket is None and (
        (way and way.fused) or any(isinstance(module, SparseLinear) for module in model.modules())
    ):
        options = {
            "tokens": named not in (None, DEFAULT_TOKENS),
            "format": format != "auto",
            "filter": filter is not None,
            "trainable": trainable,
            "device": device is not None,
            "compact": compact is not None,
            "tolerance": tolerance != "fp32",
            "fuse": fuse is not None,
        }
        for option in (name for name, changed in options.items() if changed):
            raise ValueError(
                f"{option} does not apply to a sparse model, whose plan is made: replan_ makes another one"
            )
        return carried_plan(model)
    targets = compacted_targets(
        model,
        ticket,
        filter,
        tokens=tokens,
        compact=compact,
        trainable=trainable,
        format=format,
        tolerance=tolerance,
        target=target,
    )
    planned = plan_layers(
        targets.layers,
        tokens=tokens,
        format=format,
        measure=measure,
        trainable=trainable,
        shared_inputs=shared_inputs_of(model),
        target=target,
        tolerance=tolerance,
        activations=fused_activations(model) if gpu and not trainable else {},
    )
    decision = None
    if target is None:
        require_fuse(fuse, model, trainable)
        decision = decide_encoder(
            model,
            planned.layers,
            tokens=tokens,
            fuse=fuse,
            trainable=trainable,
            measure=measure and format == "auto",
            tolerance=tolerance,
            others=plans_for_engines(
                planned, targets.layers, model, format=format, measure=measure, tolerance=tolerance
            ),
        )
    heading = _heading(tokens, is_default=named is None) if gpu else ""
    planned = replace(planned, removal_note=targets.removal_note, heading=heading)
    return replace(planned, layers=decision.layers, encoder=decision.plan) if decision else planned


def _heading(tokens: int, *, is_default: bool) -> str:
    """Return the first line of a plan for a GPU, on which few tokens gain nothing in any format."""
    note = ", the default on a GPU; tokens= plans for another number" if is_default else ""
    return f"planned for calls of {tokens} tokens{note}"


def plans_for_engines(
    planned: Plan,
    layers: Sequence[TargetLayer],
    model: nn.Module,
    *,
    format: str,
    measure: bool,
    tolerance: str,
) -> OtherPlans:
    """Plan layers for the engines in which a whole encoder may run, by the cost model.

    Args:
        planned: Their plan for running one by one.
        layers: The layers, in the order of the plan.
        model: The model.
        format: As for ``plan_layers``, and as all below.
        measure: Whether costs may be measured.
        tolerance: The lowest precision in which layers may compute.
    """
    from sparsebert.planning.engine_choice import NO_OTHERS, OtherPlans

    if not planned.layers:
        return NO_OTHERS
    tokens = planned.layers[0].tokens

    def in_fp32() -> Sequence[LayerPlan] | None:
        if not any(layer.precision for layer in planned.layers):
            return None
        return plan_layers(
            layers,
            tokens=tokens,
            format=format,
            measure=False,
            quick=measure,
            trainable=False,
            shared_inputs=shared_inputs_of(model),
        ).layers

    def in_row_panels() -> Sequence[LayerPlan]:
        return [
            _in_row_panels(layer, plan, tolerance, quick=measure)
            for layer, plan in zip(layers, planned.layers, strict=True)
        ]

    return OtherPlans(in_fp32, in_row_panels)


def _in_row_panels(layer: TargetLayer, plan: LayerPlan, tolerance: str, *, quick: bool) -> LayerPlan:
    """Return the plan of a layer for the paired engine: the row panels that are predicted to be fastest."""
    dtype, device = layer.linear.weight.dtype, layer.linear.weight.device
    choice = format_candidates(
        layer.mask, dtype, device, plan.tokens, format=RowPanelSparse.name, quick=quick, tolerance=tolerance
    )
    costs: Any = choice.costs
    seconds = {work: seconds_in_layout(costs, work, costs.seconds(work)) for work in choice.candidates}
    work = min(seconds, key=lambda each: seconds[each])
    return replace(
        plan,
        format=work.format,
        block=work.block,
        precision=work.precision,
        predicted_us=costs.seconds(work) * 1e6,
        measured_us=None,
        nbytes=work.nbytes,
        busy=False,
        decided_by="cost model",
        reason=f"the fastest row panels of the paired engine: predicted {seconds[work] * 1e6:.0f} us in it",
    )


def carried_plan(model: nn.Module) -> Plan:
    """Return the plan that the sparse layers of ``model`` follow."""
    from sparsebert.planning.after_compaction import compaction_note
    from sparsebert.planning.engine_choice import carried_encoder_plan

    sparse = [module for module in model.modules() if isinstance(module, SparseLinear) and module.plan]
    entries = tuple(module.plan for module in sparse)
    heading = _heading(entries[0].tokens, is_default=False) if entries and on_gpu(model) else ""
    carried = Plan(entries, "", compaction_note(model), carried_encoder_plan(model), heading)
    weights = (torch.empty(0, dtype=each.dtype, device=each.device) for each in sparse)
    lacking = lacking_precisions(weights, carried.tolerance)
    advice = "; sparsebert.replan_(model) times the formats here"
    modelled = any(layer.decided_by == "cost model" and not layer.busy for layer in entries)
    machine = f"as converted; here: {describe_machine()}{lacking}{advice if modelled else ''}"
    return replace(carried, machine=machine)


# More tokens than any batch in memory has: a layer of BERT-base would write 12 GB for as many.
MAX_TOKENS = 2**20


def check_options(format: str, tokens: int) -> None:
    """Raise ValueError for an unknown format or a number of tokens that no batch has."""
    names = ("auto", *formats.FORMATS, *formats.INT8_FORMATS)
    if not isinstance(format, str) or format not in names:
        raise unknown("format", format, names)
    if not isinstance(tokens, int) or isinstance(tokens, bool) or tokens < 1:
        raise ValueError(f"tokens must be a positive integer, got {tokens!r}")
    if tokens > MAX_TOKENS:
        raise ValueError(f"tokens must be at most {MAX_TOKENS}, got {tokens}")


def require_measure(measure: Any) -> None:
    """Raise ValueError unless ``measure`` is True or False."""
    if not isinstance(measure, bool):
        raise ValueError(f"measure must be True or False, got {measure!r}")


def shared_inputs_of(model: nn.Module) -> tuple[tuple[str, ...], ...]:
    """Return the keys of the query, key and value of each attention; () for a model of unknown structure."""
    return structure(model).shared_inputs if is_bert_like(model) else ()


def fused_activations(model: nn.Module) -> dict[str, str]:
    """Return the activations that kernels apply to the output of a layer, by the layer's key."""
    if not is_bert_like(model):
        return {}
    names = {key: activation_name(resolve(model, path)) for key, path in structure(model).activations.items()}
    return {key: name for key, name in names.items() if name is not None}
