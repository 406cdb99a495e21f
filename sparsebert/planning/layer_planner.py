"""Choose the packed format of each layer, with the device's cost model and by timing."""

from __future__ import annotations

import math
import time
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType

import torch
from torch import Tensor

from sparsebert.cost import gpu_roofline
from sparsebert.cost.candidates import GPU_FORMATS, format_candidates
from sparsebert.cost.cpu_cost import BUILT_IN_COSTS, runnable
from sparsebert.cost.precision import LOWER_PRECISIONS, below_tolerance, lower_precisions
from sparsebert.planning.layer_decision import LayerDecision
from sparsebert.planning.layer_timing import fastest_candidate
from sparsebert.planning.plan import LayerPlan, Plan
from sparsebert.planning.target_layers import TargetLayer
from sparsebert_kernels import cpu, cuda, formats

# A plan stops timing once timings that a busy machine spoilt took this long.
MAX_BUSY_SECONDS = 2.0


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
    """Plan the target layers; arguments as for ``planner.plan``.

    Args:
        shared_inputs: Keys of the layers that read one x and may run as one call, group by group.
        target: Figures of a GPU to plan for, instead of the layers' device.
        quick: Without ``measure``: let a CPU's costs be measured if that takes no more than half a second.
        tolerance: The lowest precision in which layers may compute.
        activations: Activations that a GPU's kernels apply, by the layers' keys (``fused_activations``).
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
        machine += lacking_precisions((each.layer.linear.weight for each in decisions), tolerance)
    return Plan(tuple(plans), machine)


def describe_machine() -> str:
    """Return the CPU's instruction set and the number of threads as text."""
    native = cpu.instruction_set() if cpu.available() else f"no native library ({cpu.why_unavailable()})"
    threads = torch.get_num_threads()
    return f"{native}, {threads} thread{'s' * (threads > 1)}"


def lacking_precisions(weights: Iterable[Tensor], tolerance: str) -> str:
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
