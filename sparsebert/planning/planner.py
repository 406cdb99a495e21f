"""The planner: choose the packed format of each layer with the device's cost model and by timing."""

from __future__ import annotations

import math
import time
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from sparsebert.bert import activation_name, is_bert_like, require_module, resolve, structure
from sparsebert.cost import gpu_roofline
from sparsebert.cost.candidates import GPU_FORMATS, format_candidates
from sparsebert.cost.cpu_cost import BUILT_IN_COSTS, runnable
from sparsebert.cost.default_tokens import default_tokens, on_gpu
from sparsebert.cost.engine_cost import seconds_in_layout
from sparsebert.cost.precision import LOWER_PRECISIONS, below_tolerance, lower_precisions, require_tolerance
from sparsebert.linear_layers import Filter
from sparsebert.nn.sparse_linear import SparseLinear
from sparsebert.planning.layer_decision import LayerDecision
from sparsebert.planning.layer_timing import fastest_candidate
from sparsebert.planning.plan import LayerPlan, Plan
from sparsebert.planning.target_layers import TargetLayer
from sparsebert.tickets.ticket import Ticket
from sparsebert_kernels import cpu, cuda, formats
from sparsebert_kernels.errors import unknown
from sparsebert_kernels.formats import RowPanelSparse
from sparsebert_kernels.formats.dense import DEFAULT_TOKENS

if TYPE_CHECKING:
    from sparsebert.planning.engine_choice import OtherPlans

# A plan stops timing once timings that a busy machine spoilt took this long.
MAX_BUSY_SECONDS = 2.0


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
        tokens: Rows of x (batch times sequence length) in a call of a layer; by default 4096 on a
            GPU and 128 on a CPU.
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
    lacking = _lacking(weights, carried.tolerance)
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


def plan_layers(
    layers: Iterable[TargetLayer],
    *,
    tokens: int,
    format: str,
    measure: bool,
    trainable: bool,
    shared_inputs: Iterable[Sequence[str]] = (),
    target: gpu_roofline.Device | None = None,
    quick: bool = False,
    tolerance: str = "fp32",
    activations: Mapping[str, str] = MappingProxyType({}),
) -> Plan:
    """Plan the target layers; arguments as for ``plan``.

    Args:
        shared_inputs: Keys of the layers that read one x and may run as one call, group by group.
        target: Figures of a GPU to plan for, instead of the layers' device.
        quick: Without ``measure``: let a CPU's costs be measured if that takes no more than half a second.
        tolerance: The lowest precision in which layers may compute.
        activations: Keys of layers -> activations that a GPU's kernels apply, see ``fused_activations``.
    """
    measure = measure and format == "auto" and target is None
    decisions: list[LayerDecision] = []
    entries: list[LayerPlan | LayerDecision] = []
    for layer in layers:
        if not trainable and (reason := _why_unpacked(layer.linear.weight, format, target)):
            entries.append(_unpacked(layer, tokens, reason))
            continue
        decision = _first_choice(
            layer, tokens, format, measure, trainable, target, quick, tolerance, activations
        )
        decisions.append(decision)
        entries.append(decision)
    by_key = {decision.layer.key: decision for decision in decisions}
    for keys in shared_inputs:
        _agree_on_blocks([by_key[key] for key in keys if key in by_key])
    open_decisions = [each for each in decisions if each.work != each.dense and each.predicted(each.work)]
    if measure:
        _settle_by_timing(open_decisions, tokens, trainable)
    elif format == "auto":
        for decision in open_decisions:
            decision.settle_by_costs(trainable)
    plans = (
        entry.layer_plan(tokens, tolerance) if isinstance(entry, LayerDecision) else entry
        for entry in entries
    )
    machine = _describe(decisions, measure, target)
    if target is None:
        machine += _lacking((each.layer.linear.weight for each in decisions), tolerance)
    return Plan(tuple(plans), machine)


def shared_inputs_of(model: nn.Module) -> tuple[tuple[str, ...], ...]:
    """Return the keys of the query, key and value of each attention; () for a model of unknown structure."""
    return structure(model).shared_inputs if is_bert_like(model) else ()


def fused_activations(model: nn.Module) -> dict[str, str]:
    """Return the activations that kernels apply to the output of a layer, by the layer's key."""
    if not is_bert_like(model):
        return {}
    names = {key: activation_name(resolve(model, path)) for key, path in structure(model).activations.items()}
    return {key: name for key, name in names.items() if name is not None}


def describe_machine() -> str:
    """Return the CPU's instruction set and the number of threads as text."""
    native = cpu.instruction_set() if cpu.available() else f"no native library ({cpu.why_unavailable()})"
    threads = torch.get_num_threads()
    return f"{native}, {threads} thread{'s' * (threads > 1)}"


def _lacking(weights: Iterable[Tensor], tolerance: str) -> str:
    """Return which precisions the caller allows in vain, since nothing computes in them here."""
    allowed = {
        (weight.dtype, precision)
        for weight in weights
        if weight.device.type == "cpu"
        for precision in lower_precisions(weight.dtype, tolerance)
    }
    runs = {precision for dtype, precision in allowed if runnable(dtype, precision)}
    missing = [each for each in LOWER_PRECISIONS if each in {precision for _, precision in allowed} - runs]
    return f"; no kernels for {' or '.join(missing)} here" if missing else ""


def _describe(decisions: list[LayerDecision], measure: bool, target: gpu_roofline.Device | None) -> str:
    """Describe the machine that the plan's times hold for."""
    gpus = {decision.device for decision in decisions if decision.device.type == "cuda"}
    figures = [target] if target else [gpu_roofline.present(device) for device in gpus]
    if not figures:
        sources = sorted({each.choice.costs.source for each in decisions}) or [BUILT_IN_COSTS]
        return f"{describe_machine()}, {'; '.join(sources)}"
    names = "; ".join(f"{device.name}, {device.source}" for device in figures)
    dtypes = sorted({str(each.layer.linear.weight.dtype).removeprefix("torch.") for each in decisions})
    timed = "timed inside CUDA graphs" if measure else "modelled, not measured"
    advice = "run the model in a CUDA graph if launching the kernels takes longer than running them"
    return f"{', '.join(dtypes)} on {names}; {timed}: {advice}"


def _why_unpacked(weight: Tensor, format: str, target: gpu_roofline.Device | None) -> str | None:
    """Return the reason why a layer must stay a plain dense matrix; None if it can be packed."""
    if weight.device.type == "cuda" or target:
        obstacle = cuda.why_unavailable(weight.device) if target is None else None
        if obstacle:
            return f"no kernels here: {obstacle}"
        if format != "auto" and format not in GPU_FORMATS:
            return f"format {format!r} has no GPU kernels"
    if weight.device.type not in ("cpu", "cuda"):
        return f"no kernels for {weight.device.type}"
    if weight.dtype == torch.float64:
        return "float64 stays a plain matrix: packed formats do not store float64"
    return None


def _unpacked(layer: TargetLayer, tokens: int, reason: str) -> LayerPlan:
    weight = layer.linear.weight
    rows, columns = weight.shape
    return LayerPlan(
        key=layer.key,
        shape=(rows, columns),
        sparsity=1 - int(torch.count_nonzero(layer.mask)) / weight.numel(),
        format="dense",
        predicted_us=None,
        measured_us=None,
        dense_us=None,
        nbytes=weight.nbytes,
        dense_nbytes=layer.dense_nbytes,
        reason=reason,
        tokens=tokens,
        removal_note=layer.removal_note,
    )


def _first_choice(
    layer: TargetLayer,
    tokens: int,
    format: str,
    measure: bool,
    trainable: bool,
    target: gpu_roofline.Device | None,
    quick: bool,
    tolerance: str,
    activations: Mapping[str, str],
) -> LayerDecision:
    """Choose the candidate with the least predicted time."""
    weight = layer.linear.weight
    choice = format_candidates(
        layer.mask,
        weight.dtype,
        target or weight.device,
        tokens,
        format=format,
        trainable=trainable,
        measure=measure,
        quick=quick and format == "auto",
        tolerance=tolerance,
        activation=activations.get(layer.key, "none"),
    )
    if not choice.candidates and not trainable:
        raise below_tolerance(format, "int8" if format in formats.INT8_FORMATS else "bf16")
    if not choice.candidates:
        raise ValueError(
            f"format {format!r} cannot train {layer.name}: use 'element', which takes any mask, "
            "or 'vector' or 'panel' with a mask of whole vectors or blocks"
        )
    return LayerDecision(layer, choice, choice.candidates[0], requested=format != "auto")


def _agree_on_blocks(decisions: list[LayerDecision]) -> None:
    """Give panel layers that read one x the block size with the least total time, for a joint call."""
    if len({each.work.block for each in decisions}) < 2 or any(d.work.format != "panel" for d in decisions):
        return
    panels = [{w.block: w for w in each.choice.candidates if w.format == "panel"} for each in decisions]
    common = set.intersection(*(set(works) for works in panels))

    def cost(block: tuple[int, int] | None) -> tuple[float, int, int]:
        works = [candidates[block] for candidates in panels]
        seconds = [each.predicted(work) or 0.0 for each, work in zip(decisions, works, strict=True)]
        return sum(seconds), sum(work.stored for work in works), -math.prod(block or ())

    if common:
        best = min(common, key=cost)
        for decision, works in zip(decisions, panels, strict=True):
            decision.work = works[best]


def _settle_by_timing(decisions: list[LayerDecision], tokens: int, trainable: bool) -> None:
    """Time the layer with the most stored weights of each class, and settle the whole class by its timing.

    The cost model settles the remaining classes once the machine was too busy for ``MAX_BUSY_SECONDS``.
    """
    busy_seconds = 0.0
    classes = defaultdict(list)
    for decision in decisions:
        classes[decision.timing_class()].append(decision)
    for members in classes.values():
        if busy_seconds > MAX_BUSY_SECONDS:
            for decision in members:
                decision.settle_untimed(trainable)
            continue
        densest = max(members, key=lambda decision: decision.work.stored)
        start = time.perf_counter()
        kind, timing = fastest_candidate(densest.layer, densest.choice, tokens)
        if timing.busy:
            busy_seconds += time.perf_counter() - start
        for decision in members:
            decision.settle_by_timing(kind, timing, trainable)
