"""The choice of the way in which an encoder runs: its layers one by one, or all of them in one native call.

Each way has plans of the layers for itself. The cost model predicts the time of every way, and the two
fastest are timed in alternation, once, on a few of the encoder's layers.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from sparsebert.bert import key_in
from sparsebert.cost.cpu_cost import CpuCostModel, cost_model, quick_cost_model, with_lower_precisions
from sparsebert.cost.engine_cost import seconds_between, seconds_in_layout
from sparsebert.cost.precision import LOWEST, lower_precisions
from sparsebert.cost.work import WorkEstimate
from sparsebert.nn.encoder_layers import NAMES as FAMILIES
from sparsebert.nn.encoder_layers import encoder_layers
from sparsebert.nn.fused_modules import (
    FUSED_ATTRIBUTES,
    Encoder,
    encoders_of,
    fuse_modules_,
    holds_foreign_code,
    plain_class,
    require_native,
    unfuse_modules_,
)
from sparsebert.nn.module_swap import HOOKS
from sparsebert.nn.native_layers import engine_dtype, require_fusible
from sparsebert.nn.plain_path import FOREIGN_CODE, PlainPath
from sparsebert.nn.sparse_linear import SparseLinear
from sparsebert.planning.encoder_plan import FP32, LAYERS, NAMES, PAIRED, EncoderPlan
from sparsebert.planning.plan import LayerPlan
from sparsebert_kernels.cpu import native
from sparsebert_kernels.cpu.encoder import has_engine
from sparsebert_kernels.timing import Paired, paired

# Attribute of an encoder with its plan.
PLAN = "encoder_plan"
# The module of heads that compare all positions of a text, padding included.
POSITION_HEAD = "qa_outputs"
# Layers that together take about this long stand for the whole encoder in a timing.
SECONDS_A_RUN = 0.02
# The longest sequences that are timed, and the most tokens.
LENGTH, MAX_TIMED_TOKENS = 128, 1024

# The tolerance that lets fused modules compute in each engine.
TOLERANCES = {FP32: "fp32", PAIRED: "bf16"}
# Blocks of a matrix that an engine stores whole.
DENSE_PANELS = (64, 32)

Plans = dict[str, LayerPlan]  # by the layer's key


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
            raise ValueError(f"fuse=True: {reason}")


def why_not_fusible(model: nn.Module) -> str | None:
    """Return why the encoder of ``model`` cannot run in one native call here; None if it can."""
    encoders = encoders_of(model)
    if not encoders:
        return f"{type(model).__name__} has no encoder of the families {FAMILIES}"
    if reason := native.why_unavailable():
        return f"the native library is missing ({reason})"
    for tensor in (tensor for encoder in encoders for tensor in encoder.module.parameters()):
        if tensor.dtype != torch.float32 or tensor.device.type != "cpu":
            return f"a parameter is {tensor.dtype} on {tensor.device}, not torch.float32 on cpu"
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
        return "answers to questions compare all positions, padding included; fuse=True demands it"
    return None


def carried_encoder_plan(model: nn.Module) -> EncoderPlan | None:
    """Return how the encoder of ``model`` runs; None if nothing was decided about it."""
    plans = (vars(encoder.module).get(PLAN) for encoder in encoders_of(model))
    return next((plan for plan in plans if plan is not None), None)


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

        The prediction stays if there is one way only, or if the machine is too busy.
        """
        predicted = self.plan.predicted_us
        first, *others = sorted(self.ways, key=lambda way: predicted.get(way, 0.0))
        if not others:
            return
        timing = _timed(self.model, self.ways, first, others[0], self.plan)
        if isinstance(timing, str):
            if LAYERS in self.ways:
                self.plan = replace(self.plan, way=LAYERS, reason=f"not fused: {timing}")
            return
        measured = {first: timing.mine * 1e6, others[0]: timing.other * 1e6}
        if timing.busy:
            reason = f"{self.plan.reason}; too busy to time"
            self.plan = replace(self.plan, reason=reason, busy=True)
            return
        way = first if timing.speedup >= 1 else others[0]
        other, gain = (others[0], timing.speedup) if way == first else (first, 1 / timing.speedup)
        reason = _compared("measured", gain, other)
        self.plan = replace(self.plan, way=way, reason=reason, measured_us=measured, decided_by="timing")

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
    lower = lower_precisions(torch.float32, tolerance)
    obstacle = why_no_paired_engine(model) if lower else None
    engines = (FP32, PAIRED) if lower and not obstacle else (FP32,)
    if saved in (engines if fuse else (LAYERS, *engines)):
        plan = EncoderPlan(saved, "as planned before", tokens=tokens, fuse=fuse, decided_by="saved plan")
        return EncoderDecision(model, {saved: one_by_one}, plan)
    ways = {} if fuse else {LAYERS: one_by_one}
    ways[FP32] = _with_dense_times(others.in_fp32(), one_by_one)
    if PAIRED in engines:
        ways[PAIRED] = _with_dense_times(others.in_row_panels(), one_by_one)
    dtype = torch.float32
    costs = quick_cost_model(dtype, tokens) if quick else cost_model(dtype, tokens, measure=measure)
    costs = with_lower_precisions(costs, dtype, lower)
    predicted = {way: 1e6 * _predicted(model, plans, way, costs) for way, plans in ways.items()}
    best, *slower = sorted(ways, key=lambda way: predicted[way])
    plan = EncoderPlan(best, "requested", predicted, tokens=tokens, fuse=fuse, decided_by="user")
    if slower:
        reason = _compared("predicted", predicted[slower[0]] / predicted[best], slower[0])
        plan = replace(plan, reason=reason, decided_by="cost model")
    if obstacle:
        plan = replace(plan, reason=f"{plan.reason}; {obstacle}")
    return EncoderDecision(model, ways, plan)


def why_no_paired_engine(model: nn.Module) -> str | None:
    """Return why the encoder of ``model`` cannot run in the paired engine here; None if it can."""
    if reason := native.why_unavailable():
        return f"the native library is missing ({reason})"
    if not has_engine(torch.bfloat16):
        return f"{native.instruction_set()} has no paired engine for bf16"
    for encoder in encoders_of(model):
        if engine_dtype(LOWEST, encoder.family) == torch.float32:
            return f"the paired engine does not compute the layers of {encoder.family.name}"
    return None


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
                total += _predicted_linear(linear, plans.get(key_in(model, names[linear])), way, costs)
            norm: Any = layer.norms[1]
            hidden = norm.weight.numel()
            total += seconds_between(hidden, costs.tokens, in_layout=way != LAYERS)
    return total


def _predicted_linear(linear: Any, plan: LayerPlan | None, way: str, costs: CpuCostModel) -> float:
    rows, columns = plan.shape if plan else (linear.out_features, linear.in_features)
    lines = rows + columns
    if plan and plan.format != "dense":
        kept = round((1 - plan.sparsity) * rows * columns)
        work = WorkEstimate(plan.format, kept, lines, 0, plan.block, precision=plan.precision)
        seconds = plan.predicted_us / 1e6 if plan.predicted_us else None
    elif way == PAIRED:
        work = WorkEstimate("row_panel", rows * columns, lines, 0, DENSE_PANELS, precision="bf16")
        seconds = costs.seconds(work)
    else:
        precision = plan.precision if plan else ""
        work = WorkEstimate("dense", rows * columns, lines, 0, shape=(rows, columns), precision=precision)
        seconds = costs.seconds(work)
    if seconds is None:  # no figures: as slow as the dense layer
        seconds = costs.seconds(WorkEstimate("dense", rows * columns, lines, 0, shape=(rows, columns)))
    return seconds if way == LAYERS else seconds_in_layout(costs, work, seconds)


def _timed(
    model: nn.Module, ways: dict[str, Plans], mine: str, other: str, plan: EncoderPlan
) -> Paired | str:
    """Time two ways on a few layers of the encoder, in alternation; return why one of them cannot run.

    The seconds are for all layers.
    """
    (encoder, *_) = encoders_of(model)
    layers = getattr(encoder.module, encoder.family.layers)
    run = min(plan.predicted_us[mine], plan.predicted_us[other]) / len(layers) / 1e6
    count = max(1, min(len(layers), round(SECONDS_A_RUN / max(run, 1e-9))))
    sample = [layers[number * len(layers) // count] for number in range(count)]
    hidden: Any = encoder_layers(*encoder)[0].norms[1].weight
    tokens = min(plan.tokens, MAX_TIMED_TOKENS)
    positions = getattr(getattr(encoder.module, "config", None), "max_position_embeddings", LENGTH)
    length = min(tokens, LENGTH, positions)
    shape = -(-tokens // length), length, hidden.numel()
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    sides = []
    with _in_eval([*sample, encoder.module]), torch.inference_mode():
        for way in (mine, other):
            try:
                sides.append(_runner(encoder, _packed_as_planned(model, sample, ways[way]), way, x))
            except PlainPath as reason:
                return str(reason)
        timing = paired(*sides)
    scale = len(layers) / count * plan.tokens / (shape[0] * shape[1])
    return replace(timing, mine=timing.mine * scale, other=timing.other * scale)


def _runner(encoder: Encoder, layers: Sequence[nn.Module], way: str, x: Tensor) -> Callable[[], Any]:
    """Return a function that runs some layers of an encoder on x [B, T, hidden], without hooks of the whole.

    Raises:
        PlainPath: The layers cannot run in one native call.
    """
    cls = plain_class(encoder.module)
    part = cls.__new__(cls)
    nn.Module.__init__(part)
    hooks = {name: getattr(part, name) for name in HOOKS}
    part.__dict__ |= {**vars(encoder.module), **hooks}
    for name in FUSED_ATTRIBUTES:
        vars(part).pop(name, None)
    part._modules = {**encoder.module._modules, encoder.family.layers: nn.ModuleList(layers).eval()}
    args, given = ((x,), {}) if encoder.family.encoder[0] else ((), {"inputs_embeds": x})
    if way != LAYERS:
        fuse_modules_(part, TOLERANCES[way])
        require_native(part, x)
    return functools.partial(part.forward, *args, **given)


def _packed_as_planned(model: nn.Module, layers: Sequence[nn.Module], plans: Plans) -> Sequence[nn.Module]:
    """Return layers of an encoder with their sparse layers packed as planned: copies of those that differ."""
    names = {module: name for name, module in model.named_modules()}
    packed = []
    for layer in layers:
        switches = {
            path: (plan.format, plan.options)
            for path, module in layer.named_modules()
            if isinstance(module, SparseLinear)
            and (plan := plans.get(key_in(model, names[module]))) is not None
            and module.recipe != (plan.format, plan.options)
        }
        layer = copy.deepcopy(layer) if switches else layer
        for path, (format, options) in switches.items():
            sparse: Any = layer.get_submodule(path)
            sparse.prepare_format(format, **options)()
        packed.append(layer)
    return packed


@contextmanager
def _in_eval(modules: Sequence[nn.Module]) -> Iterator[None]:
    """Put modules in eval mode for a while."""
    flags = [(each, each.training) for module in modules for each in module.modules()]
    for module in modules:
        module.eval()
    try:
        yield
    finally:
        for each, training in flags:
            each.training = training
