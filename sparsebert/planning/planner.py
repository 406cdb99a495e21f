"""Planning: which packed format each layer gets, by the cost model of the device and by timing."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from sparsebert.bert import is_bert_like, require_module, structure
from sparsebert.cost import gpu_roofline
from sparsebert.cost.candidates import GPU_FORMATS, Choice, choices, stored_dtype
from sparsebert.cost.work import BlockStatistics, WorkEstimate, panel_works
from sparsebert.nn.sparse_linear import SparseLinear
from sparsebert.planning.after_compaction import compacted_targets, note_of
from sparsebert.planning.plan import LayerPlan, Plan
from sparsebert.planning.target_layers import Filter, TargetLayer
from sparsebert.tickets.ticket import Ticket
from sparsebert_kernels import cpu, cuda, formats, ops
from sparsebert_kernels.cuda.timing import paired as paired_on_gpu
from sparsebert_kernels.errors import unknown
from sparsebert_kernels.timing import Paired, paired

# What a sparse layer has to gain over prepacked dense, in paired medians. Timings scatter by some per cent,
# and models call their layers with other numbers of tokens than the plan was made for: a whole model of
# layers that were timed as equal came out 4 % slower than dense.
LEAST_SPEEDUP = 1.05
# Layers of a shape and format are timed together while their stored weights differ by less than this factor.
CLASS_WIDTH = 1.25
# Of a layer's candidates at most this many are timed.
MAX_TIMED_FORMATS = 3
CLEARLY_FASTER = 1.15
# Small blocks cost less accuracy: the smallest that bring this share of what the best would are named.
ENOUGH_OF_THE_BEST = 0.75
# Longer inputs are timed on their beginning: from here on time grows with their length.
MAX_TIMED_TOKENS = {"cpu": 2048, "cuda": 65536}


def plan(
    model: nn.Module,
    ticket: Ticket | None = None,
    *,
    tokens: int = 128,
    format: str = "auto",
    measure: bool = True,
    filter: Filter | None = None,
    trainable: bool = False,
    device: str | None = None,
    compact: bool | None = None,
) -> Plan:
    """Choose a packed format for each layer that ``ticket`` (or the zeros in the weights) makes sparse.

    The cost model predicts the time of every format from the mask, the dtype and ``tokens``, the rows of x
    (batch times sequence length) that a layer sees. With ``measure`` its costs are those of this machine,
    kept in a cache file, and each choice is timed in turn with prepacked dense: a layer that gains less than
    5 % stays dense. Where the machine was busy meanwhile, a timing is repeated, and marked if
    that did not help. Without ``measure`` the plan depends on its arguments and the instruction set alone.

    Layers on a GPU are predicted by a roofline of its figures and timed inside CUDA graphs on both sides.
    ``device``, e.g. "h200" or "a100", plans for that GPU instead of where the model is: modelled, not
    measured. ``format`` names a format to take instead. ``compact`` is that of `sparsify_`: layers are
    planned in the shapes they will have, and the plan says what was taken out of them. A model that is sparse
    already gives the plan it was made by. The model is not changed.

    Raises ValueError for what `select` refuses, an unknown format or device, and a ``tokens`` that is no
    positive integer.
    """
    target = None if device is None else gpu_roofline.named(device)
    require_module(model)
    if ticket is None and any(isinstance(module, SparseLinear) for module in model.modules()):
        return carried_plan(model)
    check_options(format, tokens)
    left = compacted_targets(model, ticket, filter, tokens=tokens, compact=compact, trainable=trainable)
    made = plan_layers(
        left.selected,
        tokens=tokens,
        format=format,
        measure=measure,
        trainable=trainable,
        shared_inputs=structure(model).shared_inputs if is_bert_like(model) else (),
        target=target,
    )
    return replace(made, removal=left.note)


def carried_plan(model: nn.Module) -> Plan:
    """The plan that the sparse layers of ``model`` were made by."""
    carried = [module.plan for module in model.modules() if isinstance(module, SparseLinear) and module.plan]
    return Plan(tuple(carried), f"as converted; here: {describe_machine()}", note_of(model))


def check_options(format: str, tokens: int) -> None:
    """Raises ValueError for a format or number of tokens that `plan` does not know."""
    if not isinstance(format, str) or format not in ("auto", *formats.FORMATS):
        raise unknown("format", format, ("auto", *formats.FORMATS))
    if not isinstance(tokens, int) or isinstance(tokens, bool) or tokens < 1:
        raise ValueError(f"tokens is {tokens!r}; a positive number of rows of x is needed")


def plan_layers(
    selected: Iterable[TargetLayer],
    *,
    tokens: int,
    format: str,
    measure: bool,
    trainable: bool,
    shared_inputs: Iterable[Sequence[str]] = (),
    target: gpu_roofline.Device | None = None,
) -> Plan:
    """`plan` for layers that are selected already; ``shared_inputs``: keys of layers that may run as one."""
    measure = measure and format == "auto" and target is None
    drafts: list[_LayerDecision] = []
    entries: list[LayerPlan | _LayerDecision] = []
    for layer in selected:
        if not trainable and (reason := _why_plain(layer.linear.weight, format, target)):
            entries.append(_plain(layer, tokens, reason))
            continue
        draft = _draft(layer, tokens, format, measure, trainable, target)
        drafts.append(draft)
        entries.append(draft)
    by_key = {draft.layer.key: draft for draft in drafts}
    for keys in shared_inputs:
        _agree_on_blocks([by_key[key] for key in keys if key in by_key])
    if measure:
        sparse = [draft for draft in drafts if draft.work != draft.dense and draft.predicted(draft.work)]
        _verify(sparse, tokens, trainable)
    layers = (entry.layer_plan(tokens) if isinstance(entry, _LayerDecision) else entry for entry in entries)
    return Plan(tuple(layers), _describe(drafts, measure, target))


def _describe(drafts: list[_LayerDecision], measure: bool, target: gpu_roofline.Device | None) -> str:
    """What the plan's times hold for."""
    gpus = {draft.device for draft in drafts if draft.device.type == "cuda"}
    figures = [target] if target else [gpu_roofline.present(device) for device in gpus]
    if not figures:
        return f"{describe_machine()}, {'costs measured here' if measure else 'built-in costs'}"
    names = "; ".join(f"{device.name}, {device.source}" for device in figures)
    dtypes = sorted({str(draft.layer.linear.weight.dtype).removeprefix("torch.") for draft in drafts})
    timed = "timed inside CUDA graphs" if measure else "modelled, not measured"
    advice = "run the model in a CUDA graph where starting kernels takes longer than they do"
    return f"{', '.join(dtypes)} on {names}; {timed}: {advice}"


def describe_machine() -> str:
    native = cpu.instruction_set() if cpu.available() else f"no native library ({cpu.why_unavailable()})"
    threads = torch.get_num_threads()
    return f"{native}, {threads} thread{'s' * (threads > 1)}"


def _why_plain(weight: Tensor, format: str, target: gpu_roofline.Device | None) -> str | None:
    """Why a layer has to stay a plain dense matrix, if it has to."""
    if weight.device.type == "cuda" or target:
        lack = cuda.why_unavailable(weight.device) if target is None else None
        if lack:
            return f"no kernels here: {lack}"
        if format != "auto" and format not in GPU_FORMATS:
            return f"format {format!r} has no GPU kernels"
    if weight.device.type not in ("cpu", "cuda"):
        return f"no kernels for {weight.device.type}"
    if weight.dtype == torch.float64:
        return "float64 stays a plain matrix: packed formats hold no float64"
    return None


def _plain(layer: TargetLayer, tokens: int, reason: str) -> LayerPlan:
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
        removed=layer.removed,
    )


def _draft(
    layer: TargetLayer,
    tokens: int,
    format: str,
    measure: bool,
    trainable: bool,
    target: gpu_roofline.Device | None,
) -> _LayerDecision:
    """The formats that could serve a layer, the one with the least predicted time first."""
    weight = layer.linear.weight
    choice = choices(
        layer.mask,
        weight.dtype,
        target or weight.device,
        tokens,
        format=format,
        trainable=trainable,
        measure=measure,
    )
    if not choice.candidates:
        raise ValueError(
            f"format {format!r} cannot train {layer.name}: 'element' serves any mask, "
            "'vector' and 'panel' masks of whole vectors or blocks"
        )
    return _LayerDecision(layer, choice, choice.candidates[0], asked=format != "auto")


@dataclass
class _LayerDecision:
    """A layer's plan in the making: what could serve it, the choice so far, and what was measured of it."""

    layer: TargetLayer
    choice: Choice
    work: WorkEstimate
    asked: bool
    timing: Paired | None = None
    rejected: WorkEstimate | None = None

    @property
    def dense(self) -> WorkEstimate:
        return self.choice.dense

    @property
    def device(self) -> torch.device:
        return self.layer.linear.weight.device

    def predicted(self, work: WorkEstimate) -> float | None:
        return self.choice.predicted(work)

    def timed_class(self) -> tuple[Any, ...]:
        """Layers that are timed as one."""
        width = round(math.log(max(self.work.stored, 1)) / math.log(CLASS_WIDTH))
        dtype = self.layer.linear.weight.dtype
        kinds = tuple(sorted(work.kind for work in self.choice.candidates))
        return tuple(self.layer.mask.shape), self.work.kind, kinds, dtype, self.device, width

    def settle(self, kind: str, timing: Paired, trainable: bool) -> None:
        """Take the fastest kind of this layer's class and its timing; dense where that is faster."""
        self.timing = timing
        self.work = next(work for work in self.choice.candidates if work.kind == kind)
        if timing.speedup < LEAST_SPEEDUP and not trainable:
            self.rejected, self.work = self.work, self.dense

    def layer_plan(self, tokens: int) -> LayerPlan:
        statistics, timing = self.choice.statistics, self.timing
        predicted, dense, measured = self.predicted(self.work), self.predicted(self.dense), None
        if timing:
            dense = timing.other
            measured = timing.other if self.rejected else timing.mine
        return LayerPlan(
            key=self.layer.key,
            shape=(statistics.rows, statistics.columns),
            sparsity=statistics.sparsity,
            format=self.work.format,
            predicted_us=_micro(predicted),
            measured_us=_micro(measured),
            dense_us=_micro(dense and dense * self.layer.shrinkage),
            nbytes=self.work.nbytes,
            dense_nbytes=self.layer.dense_nbytes,
            reason=self._reason(predicted, dense),
            tokens=tokens,
            block=self.work.block,
            removed=self.layer.removed,
            busy=timing is not None and timing.busy,
        )

    def _reason(self, predicted: float | None, dense: float | None) -> str:
        doubt = "?" if self.timing and self.timing.busy else ""
        if self.asked:
            reason = "asked for"
        elif self.choice.statistics.full:
            reason = "nothing is pruned"
        elif self.rejected and self.timing:
            measured = f"measured {self.timing.speedup:.2f}x{doubt} dense"
            reason = f"{self.rejected.format} {measured}, less than {LEAST_SPEEDUP}x"
        elif self.work == self.dense:
            reason = f"no format is predicted to be faster{self._as_blocks()}"
        elif self.timing:
            reason = f"measured {self.timing.speedup:.1f}x{doubt} dense"
        elif predicted and dense:
            reason = f"predicted {dense / predicted:.1f}x dense"
        else:
            reason = "no figures: the format that stores least"
        half = self.layer.linear.weight.dtype == torch.float16 and self.choice.blocks is None
        return f"{reason}; computed in float32" if half else reason

    def _as_blocks(self) -> str:
        """What a ticket of the same sparsity would bring on a GPU if it kept whole blocks."""
        if self.choice.blocks is None:
            return ""
        statistics = self.choice.statistics
        spread = BlockStatistics.spread(statistics.rows, statistics.columns, 1 - statistics.sparsity)
        stored = stored_dtype(self.layer.linear.weight.dtype, "cuda")
        gains = {w.block: self.choice.predicted_speedup(w) for w in panel_works(statistics, spread, stored)}
        enough = ENOUGH_OF_THE_BEST * max(gains.values())
        block = min((block for block in gains if block and gains[block] >= enough), key=math.prod)
        if gains[block] < 1:
            return ""
        return f"; as {block[0]}x{block[1]} blocks up to {gains[block]:.1f}x predicted"


def _agree_on_blocks(drafts: list[_LayerDecision]) -> None:
    """Layers that read one x in panels take the block size that is best for all, to run as one call."""
    if len({draft.work.block for draft in drafts}) < 2 or any(d.work.format != "panel" for d in drafts):
        return
    panels = [{w.block: w for w in draft.choice.candidates if w.format == "panel"} for draft in drafts]
    common = set.intersection(*(set(works) for works in panels))

    def cost(block: tuple[int, int] | None) -> tuple[float, int, int]:
        works = [candidates[block] for candidates in panels]
        seconds = [draft.predicted(work) or 0.0 for draft, work in zip(drafts, works, strict=True)]
        return sum(seconds), sum(work.stored for work in works), -math.prod(block or ())

    if common:
        best = min(common, key=cost)
        for draft, works in zip(drafts, panels, strict=True):
            draft.work = works[best]


def _verify(drafts: list[_LayerDecision], tokens: int, trainable: bool) -> None:
    """Time the densest layer of each class in turn with prepacked dense, and give its class what won."""
    classes = defaultdict(list)
    for draft in drafts:
        classes[draft.timed_class()].append(draft)
    for members in classes.values():
        densest = max(members, key=lambda draft: draft.work.stored)
        kind, timing = _fastest(densest, tokens)
        for draft in members:
            draft.settle(kind, timing, trainable)


def _fastest(draft: _LayerDecision, tokens: int) -> tuple[str, Paired]:
    """The fastest of the first candidates: further ones are timed while they are predicted to be clearly
    faster than what was measured so far, so that neither a wrong prediction nor noise decides."""
    first, *others = draft.choice.candidates[:MAX_TIMED_FORMATS]
    best, least = first, _time_against_dense(draft, first, tokens)
    for work in others:
        if work == draft.dense or draft.choice.predicted_speedup(work) < CLEARLY_FASTER * least.speedup:
            break
        timing = _time_against_dense(draft, work, tokens)
        if timing.speedup > CLEARLY_FASTER * least.speedup:
            best, least = work, timing
    return best.kind, least


@torch.no_grad()
def _time_against_dense(draft: _LayerDecision, work: WorkEstimate, tokens: int) -> Paired:
    linear, device = draft.layer.linear, draft.device
    dtype = linear.weight.dtype
    stored = stored_dtype(dtype, device.type)
    timed = min(tokens, MAX_TIMED_TOKENS[device.type])
    # Left over weights are no part of this: inf or NaN would be timed on their own slow path.
    weight = torch.randn(linear.weight.shape, generator=torch.Generator().manual_seed(0)).to(device, stored)
    x = torch.randn(timed, linear.in_features, generator=torch.Generator().manual_seed(1)).to(device, dtype)
    sparse = formats.pack(weight, draft.layer.mask, format=work.format, **work.options)
    dense = formats.pack(weight, draft.layer.mask, format="dense", tokens=timed)
    sides = lambda: ops.linear(x, sparse, linear.bias), lambda: ops.linear(x, dense, linear.bias)
    timing = paired(*sides) if device.type == "cpu" else paired_on_gpu(*sides)
    scale = tokens / timed
    return replace(timing, mine=timing.mine * scale, other=timing.other * scale)


def _micro(seconds: float | None) -> float | None:
    return None if seconds is None else seconds * 1e6
