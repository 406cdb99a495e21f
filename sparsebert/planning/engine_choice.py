"""The choice of the way in which an encoder runs: its layers one by one, or all of them in one native call.

On a GPU, the layers run packed wherever their family has that form.

Each way has plans of the layers for itself. The cost model predicts the time of every way, and the two
fastest are timed in alternation, once, on a few of the encoder's layers. The fp16 engine is not predicted: it
is used only where it is timed and faster than the fastest of the others.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from sparsebert.bert import key_in
from sparsebert.cost.cpu_cost import CpuCostModel, cost_model, quick_cost_model, with_lower_precisions
from sparsebert.cost.engine_cost import seconds_between, seconds_in_layout
from sparsebert.cost.precision import LOWEST, lower_precisions
from sparsebert.cost.work import WorkEstimate
from sparsebert.nn.encoder_layers import NAMES as FAMILIES
from sparsebert.nn.encoder_layers import encoder_layers
from sparsebert.nn.fp16_range import LEFT_RANGE, left_range
from sparsebert.nn.fused_modules import encoders_of, fuse_modules_, holds_foreign_code, unfuse_modules_
from sparsebert.nn.native_layers import require_fusible
from sparsebert.nn.native_weights import native_form
from sparsebert.nn.packed_layers import require_packable, runs_packed
from sparsebert.nn.plain_path import FOREIGN_CODE, PlainPath
from sparsebert.nn.sparse_linear import SparseLinear
from sparsebert.planning.encoder_plan import (
    FP16,
    FP32,
    LAYERS,
    NAMES,
    PACKED,
    PAIRED,
    PAIRED_INT8,
    TOLERANCES,
    EncoderPlan,
)
from sparsebert.planning.encoder_timing import Plans, time_ways
from sparsebert.planning.plan import LayerPlan
from sparsebert_kernels.cpu import native
from sparsebert_kernels.cpu.encoder import has_engine
from sparsebert_kernels.timing import Paired

# Attribute of an encoder with its plan.
PLAN = "encoder_plan"
# The module of heads that compare all positions of a text, padding included.
POSITION_HEAD = "qa_outputs"
# Blocks of a matrix that the paired engine stores whole, by its precision.
DENSE_PANELS = {"bf16": (64, 32), "int8": (64, 64)}


@dataclass(frozen=True)
class OtherPlans:
    """Plans of the layers for the engines; None where the layers are packed as if they ran one by one.

    Attributes:
        in_fp32: Plans for the fp32 engine.
        in_row_panels: Plans for the paired engine.
    """

    in_fp32: Callable[[], Sequence[LayerPlan] | None]
    in_row_panels: Callable[[], Sequence[LayerPlan] | None]


NO_OTHERS = OtherPlans(lambda: None, lambda: None)


def require_fuse(fuse: Any, model: nn.Module, trainable: bool) -> None:
    """Check the option ``fuse`` of ``sparsify_``.

    Raises:
        ValueError: It is not True, False or None, or True for a model that cannot be fused.
    """
    if fuse is not None and not isinstance(fuse, bool):
        raise ValueError(f"fuse must be True, False or None, got {fuse!r}")
    if fuse:
        reason = "trainable layers record gradients" if trainable else why_not_fusible(model)
        if reason:
            raise ValueError(f"the encoder cannot be fused: {reason}")


def on_gpu(model: nn.Module) -> bool:
    """Whether the encoders of ``model`` are on a GPU, by their first parameter."""
    parameters = (tensor for encoder in encoders_of(model) for tensor in encoder.module.parameters())
    return runs_packed(next(parameters, None))


def why_not_packed(model: nn.Module) -> str | None:
    """Return why the encoders of ``model`` cannot run packed on its GPU; None if they can."""
    for module, family in encoders_of(model):
        places = {parameter.device for parameter in module.parameters()}
        if len(places) > 1:
            return f"the layers are on {', '.join(sorted(map(str, places)))}"
        try:
            require_packable(module, family)
        except (PlainPath, ValueError) as reason:
            return str(reason)
    return None


def why_not_fusible(model: nn.Module) -> str | None:
    """Return why the encoder of ``model`` cannot run fused where it is; None if it can."""
    encoders = encoders_of(model)
    if not encoders:
        return f"{type(model).__name__} has no encoder of the families {FAMILIES}"
    if on_gpu(model):
        return why_not_packed(model)
    if reason := native.why_unavailable():
        return f"the native library is missing ({reason})"
    stored = _stored_dtype(model)
    for tensor in (tensor for encoder in encoders for tensor in encoder.module.parameters()):
        if tensor.dtype != stored or tensor.device.type != "cpu":
            return f"a parameter is {tensor.dtype} on {tensor.device}, not {stored} on cpu"
    try:
        native_form("fp32", stored)
    except PlainPath as reason:
        return str(reason)
    try:
        for encoder in encoders:
            require_fusible(*encoder)
    except ValueError as error:
        return str(error)
    return None


def _why_not_by_default(model: nn.Module) -> str | None:
    """Return why the encoder of ``model`` is fused on demand only; None if it may be fused by default."""
    if reason := why_not_fusible(model):
        return reason
    for encoder in encoders_of(model):
        if holds_foreign_code(encoder):
            return FOREIGN_CODE
        config = getattr(encoder.module, "config", None)
        if getattr(config, "output_hidden_states", False) or getattr(config, "output_attentions", False):
            return "the model returns hidden states or attentions"
    if any(name.rpartition(".")[2] == POSITION_HEAD for name, _ in model.named_modules()):
        return "answers to questions compare all positions, padding included: fused on demand only"
    return None


def carried_encoder_plan(model: nn.Module) -> EncoderPlan | None:
    """Return how the encoder of ``model`` runs; None if nothing was decided about it."""
    for encoder in encoders_of(model):
        plan: EncoderPlan | None = vars(encoder.module).get(PLAN)
        if plan is None:
            continue
        if plan.fused and (plan.way == PACKED) != on_gpu(model):
            return _after_move(model, plan)
        if plan.way != FP16:
            return plan
        obstacle = "" if has_engine(torch.float16) else "no fp16 engine here"
        if left_range(encoder.module, TOLERANCES[FP16]):
            obstacle = LEFT_RANGE
        return replace(plan, way=FP32, reason=f"{obstacle}; before: {plan.reason}") if obstacle else plan
    return None


def _after_move(model: nn.Module, plan: EncoderPlan) -> EncoderPlan:
    """Return how a fused encoder runs on another kind of device than it was planned for."""
    if not on_gpu(model):
        way = PAIRED if _stored_dtype(model) == torch.bfloat16 else FP32
        return replace(plan, way=way, reason="the model was moved to a CPU")
    if reason := why_not_packed(model):
        return replace(plan, way=LAYERS, reason=f"not fused: {reason}")
    return replace(plan, way=PACKED, reason="the model was moved to a GPU")


@dataclass
class EncoderDecision:
    """The way in which the encoder of a model runs, until a timing settles it as predicted.

    Attributes:
        model: The model.
        ways: The ways that come into question, with the plans of the layers for each.
        plan: The way, as decided so far.
    """

    model: nn.Module
    ways: dict[str, Plans]
    plan: EncoderPlan

    @property
    def layers(self) -> tuple[LayerPlan, ...]:
        """The plans of the layers for the decided way."""
        return tuple(self.ways[self.plan.way].values())

    def settle_by_timing(self) -> None:
        """Time the two ways that are predicted to be fastest, once the layers are packed; choose the faster.

        Where there is the fp16 engine, it is timed against that one. The prediction stays if there is one way
        only, or if the machine is too busy.
        """
        predicted = self.plan.predicted_us
        ways = sorted((way for way in self.ways if way in predicted), key=lambda way: predicted[way])
        if len(ways) > 1:
            timing = self._timed(*ways[:2])
            if isinstance(timing, str):
                if LAYERS in self.ways:
                    self.plan = replace(self.plan, way=LAYERS, reason=f"not fused: {timing}")
                return
        if ways and FP16 in self.ways and not self.plan.busy:
            timing = self._timed(self.plan.way, FP16)
            if isinstance(timing, str):
                self.plan = replace(self.plan, reason=f"{self.plan.reason}; no fp16 engine: {timing}")

    def _timed(self, first: str, second: str) -> Paired | str:
        """Time two ways and choose the faster, or return why one of them cannot run."""
        timing = time_ways(self.model, self.ways, first, second, self.plan)
        if isinstance(timing, str):
            return timing
        if timing.busy:
            reason = f"{self.plan.reason}; too busy to time"
            self.plan = replace(self.plan, reason=reason, busy=True)
            return timing
        way, other = (first, second) if timing.speedup >= 1 else (second, first)
        reason = _compared("measured", max(timing.speedup, 1 / timing.speedup), other)
        measured = {**self.plan.measured_us, first: timing.mine * 1e6, second: timing.other * 1e6}
        self.plan = replace(self.plan, way=way, reason=reason, measured_us=measured, decided_by="timing")
        return timing

    def apply_(self) -> None:
        """Let the model's encoders run in the decided way."""
        set_encoder_plan_(self.model, self.plan)


def set_encoder_plan_(model: nn.Module, plan: EncoderPlan | None) -> None:
    """Let the encoders of ``model`` run as planned; None lets them run as in transformers."""
    unfuse_modules_(model)
    if plan is not None and plan.fused:
        fuse_modules_(model, TOLERANCES[plan.way])
    for encoder in encoders_of(model):
        vars(encoder.module).pop(PLAN, None)
        if plan is not None:
            vars(encoder.module)[PLAN] = plan


def decide_encoder(
    model: nn.Module,
    planned: Sequence[LayerPlan],
    *,
    tokens: int,
    fuse: bool | None,
    trainable: bool = False,
    measure: bool = False,
    quick: bool = False,
    saved: str = "",
    tolerance: str = "fp32",
    others: OtherPlans = NO_OTHERS,
) -> EncoderDecision | None:
    """Choose the way with the least predicted time.

    Args:
        model: The model; it is only read.
        planned: The plans of its layers, where they run one by one.
        tokens: Tokens of a call.
        fuse: As for ``sparsify_``, checked by ``require_fuse``.
        trainable: Whether the layers will be trained.
        measure: Whether costs may be measured.
        quick: Whether costs may be measured if that takes no more than half a second.
        saved: The way that was chosen on such a machine; "" if unknown.
        tolerance: The lowest precision in which the encoder may compute.
        others: Plans the layers for the engines.

    Returns:
        The decision; None for a model without an encoder of a known family.
    """
    if not encoders_of(model):
        return None
    one_by_one = {layer.key: layer for layer in planned}

    def without_choice(reason: str, by: str = "") -> EncoderDecision:
        plan = EncoderPlan(LAYERS, reason, tokens=tokens, fuse=fuse, decided_by=by)
        return EncoderDecision(model, {LAYERS: one_by_one}, plan)

    if trainable:
        return without_choice("trainable layers record gradients")
    if fuse is False:
        return without_choice("requested", "user")
    if fuse is None and (obstacle := _why_not_by_default(model)):
        return without_choice(f"not fused: {obstacle}")
    if on_gpu(model):
        reason, by = ("requested", "user") if fuse else ("the model is on a GPU", "")
        plan = EncoderPlan(PACKED, reason, tokens=tokens, fuse=fuse, decided_by=by)
        return EncoderDecision(model, {PACKED: one_by_one}, plan)
    stored = _stored_dtype(model)
    lower = lower_precisions(stored, tolerance)
    in_bf16 = stored == torch.bfloat16
    obstacle = why_no_paired_engine() if lower or in_bf16 else None
    if stored not in (torch.float32, torch.bfloat16) or (in_bf16 and obstacle):
        return without_choice(f"not fused: {why_not_fusible(model)}")
    engines: tuple[str, ...] = () if in_bf16 else (FP32,)
    if not obstacle and (lower or in_bf16):
        engines += (PAIRED,)
        if LOWEST in lower and _has_dense_layers(model, planned):
            engines += (PAIRED_INT8,)
    if lower and not in_bf16 and has_engine(torch.float16):
        engines += (FP16,)
    if saved in (engines if fuse else (LAYERS, *engines)):
        plan = EncoderPlan(saved, "as planned before", tokens=tokens, fuse=fuse, decided_by="saved plan")
        return EncoderDecision(model, {saved: one_by_one}, plan)
    ways = {} if fuse else {LAYERS: one_by_one}
    if FP32 in engines:
        ways[FP32] = _with_dense_times(others.in_fp32(), one_by_one)
    if PAIRED in engines:
        ways[PAIRED] = _with_dense_times(others.in_row_panels(), one_by_one)
    if PAIRED_INT8 in engines:
        ways[PAIRED_INT8] = ways[PAIRED]
    costs = quick_cost_model(stored, tokens) if quick else cost_model(stored, tokens, measure=measure)
    costs = with_lower_precisions(costs, stored, ("bf16",) * in_bf16 + lower)
    predicted = {way: 1e6 * _predicted(model, plans, way, costs) for way, plans in ways.items()}
    if FP16 in engines:
        ways[FP16] = ways[FP32]
    best, *slower = sorted(predicted, key=lambda way: predicted[way])
    plan = EncoderPlan(best, "requested", predicted, tokens=tokens, fuse=fuse, decided_by="user")
    if slower:
        reason = _compared("predicted", predicted[slower[0]] / predicted[best], slower[0])
        plan = replace(plan, reason=reason, decided_by="cost model")
    if obstacle:
        plan = replace(plan, reason=f"{plan.reason}; {obstacle}")
    return EncoderDecision(model, ways, plan)


def why_no_paired_engine() -> str | None:
    """Return why no encoder can run in the paired engine here; None if the library has it."""
    if reason := native.why_unavailable():
        return f"the native library is missing ({reason})"
    if not has_engine(torch.bfloat16):
        return f"{native.instruction_set()} has no paired engine for bf16"
    return None


def _stored_dtype(model: nn.Module) -> torch.dtype:
    """Return the dtype of the parameters of the model's encoders, by the first of them."""
    parameters = (tensor for encoder in encoders_of(model) for tensor in encoder.module.parameters())
    return next((tensor.dtype for tensor in parameters), torch.float32)


def _has_dense_layers(model: nn.Module, planned: Sequence[LayerPlan]) -> bool:
    """Whether linear layers of the model's encoders stay dense, with no plan for themselves."""
    keys = {layer.key for layer in planned}
    names = {module: name for name, module in model.named_modules()}
    return any(
        not isinstance(linear, SparseLinear) and key_in(model, names[linear]) not in keys
        for encoder in encoders_of(model)
        for layer in encoder_layers(*encoder)
        for linear in filter(None, layer.linears)
    )


def _compared(verb: str, gain: float, other: str) -> str:
    return f"{verb} {gain:.2f}x as fast as {NAMES[other]}"


def _with_dense_times(plans: Sequence[LayerPlan] | None, one_by_one: Plans) -> Plans:
    """Return plans for an engine with the fastest dense times; ``one_by_one`` if there are none."""
    if plans is None:
        return one_by_one
    timed = ("dense_us", "dense_form", "tolerance")
    return {
        plan.key: replace(plan, **{name: getattr(one_by_one[plan.key], name) for name in timed})
        for plan in plans
    }


def _predicted(model: nn.Module, plans: Plans, way: str, costs: CpuCostModel) -> float:
    """Predict the seconds of the model's encoders."""
    names = {module: name for name, module in model.named_modules()}
    total = 0.0
    for encoder in encoders_of(model):
        for layer in encoder_layers(*encoder):
            for linear in filter(None, layer.linears):
                total += predict_linear(linear, plans.get(key_in(model, names[linear])), way, costs)
            norm: Any = layer.norms[1]
            hidden = norm.weight.numel()
            total += seconds_between(hidden, costs.tokens, in_layout=way != LAYERS)
    return total


def predict_linear(linear: Any, plan: LayerPlan | None, way: str, costs: CpuCostModel) -> float:
    """Predict the seconds of a linear layer, dense without a plan, where the encoder runs in this way."""
    rows, columns = plan.shape if plan else (linear.out_features, linear.in_features)
    lines = rows + columns
    if plan and plan.format != "dense":
        kept = round((1 - plan.sparsity) * rows * columns)
        work = WorkEstimate(plan.format, kept, lines, 0, plan.block, precision=plan.precision)
        seconds = plan.predicted_us / 1e6 if plan.predicted_us else None
    elif way in (PAIRED, PAIRED_INT8):
        precision = TOLERANCES[way] if plan is None else plan.precision or "bf16"
        work = WorkEstimate(
            "row_panel", rows * columns, lines, 0, DENSE_PANELS[precision], precision=precision
        )
        seconds = costs.seconds(work) if costs.supports(work) else None
    else:
        precision = plan.precision if plan else ""
        work = WorkEstimate("dense", rows * columns, lines, 0, shape=(rows, columns), precision=precision)
        seconds = costs.seconds(work)
    if seconds is None:  # no figures: as slow as the dense layer
        seconds = costs.seconds(WorkEstimate("dense", rows * columns, lines, 0, shape=(rows, columns)))
    return seconds if way == LAYERS else seconds_in_layout(costs, work, seconds)
