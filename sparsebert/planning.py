"""The plan: which packed format each layer gets, what that is expected to bring, and why."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from sparsebert.cost import MaskStatistics, Work, works
from sparsebert.machine import CostModel, cost_model
from sparsebert.nn import STORED, SparseLinear
from sparsebert.selection import Filter, Selected, select
from sparsebert.ticket import Ticket
from sparsebert_kernels import cpu, formats, ops
from sparsebert_kernels.names import unknown
from sparsebert_kernels.tuning import Paired, paired

# A sparse layer has to reach this share of prepacked dense's speed, in paired medians.
LEAST_SPEEDUP = 0.98
# Layers of a shape and format are timed together while their stored weights differ by less than this factor.
CLASS_WIDTH = 1.25
# Of a layer's candidates at most this many are timed.
MAX_TIMED_FORMATS = 3
CLEARLY_FASTER = 1.15
# Longer inputs are timed on their beginning: from here on time grows with their length.
MAX_TIMED_TOKENS = 2048


@dataclass(frozen=True)
class LayerPlan:
    """The choice for one layer. Times are microseconds for ``tokens`` rows of x, sizes are bytes.

    predicted_us  of the chosen format by the cost model; None where it has no figures for it
    measured_us   of the chosen format, on the densest layer of this kind; None without a measurement
    dense_us      of the prepacked dense layer: measured where there is a measurement, else predicted
    nbytes        of the packed weight; an estimate within a few percent until the layer is converted
    """

    key: str
    shape: tuple[int, int]
    sparsity: float
    format: str
    predicted_us: float | None
    measured_us: float | None
    dense_us: float | None
    nbytes: int
    dense_nbytes: int
    reason: str
    tokens: int
    vector_rows: int | None = None

    @property
    def options(self) -> dict[str, Any]:
        """Options for `SparseLinear`."""
        if self.format in ("dense", "compact"):
            return {"tokens": self.tokens}
        return {} if self.vector_rows is None else {"vector_rows": self.vector_rows}

    @property
    def label(self) -> str:
        """The format for people to read."""
        return self.format if self.vector_rows is None else f"{self.format} {self.vector_rows}x1"


@dataclass(frozen=True)
class Plan:
    """The choices for a model, in the order of its layers; prints as a table.

    ``machine`` names what the times hold for: instruction set, threads and where the costs come from.
    """

    layers: tuple[LayerPlan, ...]
    machine: str

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)

    @property
    def summary(self) -> str:
        """One line: formats, bytes and times in all."""
        counts = Counter(layer.label for layer in self.layers)
        chosen = ", ".join(f"{count} {label}" for label, count in counts.most_common())
        held, dense = (
            sum(getattr(layer, name) for layer in self.layers) for name in ("nbytes", "dense_nbytes")
        )
        line = f"{chosen}; {held / 2**20:.1f} MiB of {dense / 2**20:.1f} MiB dense ({held / dense:.2f}x)"
        times = [(_time(layer), layer.dense_us) for layer in self.layers]
        if all(own and dense_us for own, dense_us in times):
            own, dense_us = (sum(column) / 1e3 for column in zip(*times, strict=True))
            line += f"; {own:.2f} ms instead of {dense_us:.2f} ms dense ({dense_us / own:.1f}x)"
        return line

    def __str__(self) -> str:
        rows = [_HEADER, *(_cells(layer) for layer in self.layers)]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        table = [
            "  ".join(
                cell.rjust(width) if numeric else cell.ljust(width)
                for cell, width, numeric in zip(row, widths, _NUMERIC, strict=True)
            ).rstrip()
            for row in rows
        ]
        return "\n".join([*table, self.summary, self.machine])

    def __rich__(self) -> Any:
        from rich.table import Table

        table = Table(caption=f"{self.summary}\n{self.machine}")
        for name, numeric in zip(_HEADER, _NUMERIC, strict=True):
            table.add_column(name, justify="right" if numeric else "left")
        for layer in self.layers:
            table.add_row(*_cells(layer))
        return table


_HEADER = (
    "layer", "shape", "sparsity", "format", "predicted", "measured", "dense", "KiB", "of dense", "reason",
)  # fmt: skip
_NUMERIC = (False, True, True, False, True, True, True, True, True, False)


def plan(
    model: nn.Module,
    ticket: Ticket | None = None,
    *,
    tokens: int = 128,
    format: str = "auto",
    measure: bool = True,
    filter: Filter | None = None,
    trainable: bool = False,
) -> Plan:
    """Choose a packed format for each layer that ``ticket`` (or the zeros in the weights) makes sparse.

    The cost model predicts the time of every format from the mask, the dtype and ``tokens``, the rows of x
    (batch times sequence length) that a layer sees. With ``measure`` its costs are those of this machine,
    kept in a cache file, and each choice is timed in turn with prepacked dense: a layer that turns out more
    than 2 % slower becomes dense. Without it the plan depends on its arguments and the instruction set alone.

    ``format`` names a format to take instead. A model that is sparse already gives the plan it was made by.
    The model is not changed.

    Raises ValueError for what `select` refuses, an unknown format, and a ``tokens`` that is no positive
    integer.
    """
    if ticket is None and any(isinstance(module, SparseLinear) for module in model.modules()):
        return carried_plan(model)
    check_options(format, tokens)
    selected = select(model, ticket, filter)
    return plan_layers(selected, tokens=tokens, format=format, measure=measure, trainable=trainable)


def carried_plan(model: nn.Module) -> Plan:
    """The plan that the sparse layers of ``model`` were made by."""
    carried = [module.plan for module in model.modules() if isinstance(module, SparseLinear) and module.plan]
    return Plan(tuple(carried), f"as converted; here: {describe_machine()}")


def check_options(format: str, tokens: int) -> None:
    """Raises ValueError for a format or number of tokens that `plan` does not know."""
    if format != "auto" and format not in formats.FORMATS:
        raise unknown("format", format, ("auto", *formats.FORMATS))
    if not isinstance(tokens, int) or isinstance(tokens, bool) or tokens < 1:
        raise ValueError(f"tokens is {tokens!r}; a positive number of rows of x is needed")


def plan_layers(
    selected: Iterable[Selected], *, tokens: int, format: str, measure: bool, trainable: bool
) -> Plan:
    """`plan` for layers that are selected already."""
    measure = measure and format == "auto"
    drafts: list[_Draft] = []
    entries: list[LayerPlan | _Draft] = []
    for layer in selected:
        if not trainable and (reason := _why_plain(layer.linear.weight)):
            entries.append(_plain(layer, tokens, reason))
            continue
        draft = _draft(layer, tokens, format, measure, trainable)
        drafts.append(draft)
        entries.append(draft)
    if measure:
        sparse = [draft for draft in drafts if draft.work != draft.dense and draft.costs.knows(draft.work)]
        _verify(sparse, tokens, trainable)
    source = "costs measured here" if measure else "built-in costs"
    layers = (entry.layer_plan(tokens) if isinstance(entry, _Draft) else entry for entry in entries)
    return Plan(tuple(layers), f"{describe_machine()}, {source}")


def describe_machine() -> str:
    native = cpu.instruction_set() if cpu.available() else f"no native library ({cpu.why_unavailable()})"
    threads = torch.get_num_threads()
    return f"{native}, {threads} thread{'s' * (threads > 1)}"


def _why_plain(weight: Tensor) -> str | None:
    """Why a layer has to stay a plain dense matrix, if it has to."""
    if weight.device.type != "cpu":
        return f"no kernels for {weight.device.type} in this version"
    if weight.dtype == torch.float64:
        return "float64 stays a plain matrix: packed formats hold float32 and bfloat16"
    return None


def _plain(layer: Selected, tokens: int, reason: str) -> LayerPlan:
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
        dense_nbytes=weight.nbytes,
        reason=reason,
        tokens=tokens,
    )


def _draft(layer: Selected, tokens: int, format: str, measure: bool, trainable: bool) -> _Draft:
    """The formats that could serve a layer, the one with the least predicted time first."""
    stored = STORED[layer.linear.weight.dtype]
    statistics = MaskStatistics.of(layer.mask)
    costs = cost_model(stored, tokens, measure=measure)
    (dense,) = works(statistics, stored, ("dense",))
    candidates = list(works(statistics, stored, formats.FORMATS if format == "auto" else (format,)))
    if trainable:
        candidates = [work for work in candidates if _can_train(work, statistics)]
        if not candidates:
            raise ValueError(
                f"format {format!r} cannot train {layer.name}: 'element' serves any mask, "
                "'vector' masks of whole vectors"
            )
    elif format == "auto":
        candidates = [work for work in candidates if costs.knows(work) and _can_pay(work, dense, statistics)]

    def order(work: Work) -> tuple[float, int]:
        # Where the cost model has no figures, what stores least.
        return (costs.seconds(work) if costs.knows(work) else math.inf), work.stored

    candidates.sort(key=order)
    return _Draft(layer, statistics, costs, dense, candidates, candidates[0], asked=format != "auto")


def _can_train(work: Work, statistics: MaskStatistics) -> bool:
    if work.vector_rows is not None:
        return statistics.aligned(work.vector_rows)
    return work.format == "element"


def _can_pay(work: Work, dense: Work, statistics: MaskStatistics) -> bool:
    if work == dense:
        return True
    smaller = work.nbytes < dense.nbytes and not statistics.full
    return smaller and (work.format != "compact" or statistics.has_dead_lines)


@dataclass
class _Draft:
    """A layer's plan in the making: what could serve it, the choice so far, and what was measured of it."""

    layer: Selected
    statistics: MaskStatistics
    costs: CostModel
    dense: Work
    candidates: list[Work]
    work: Work
    asked: bool
    timing: Paired | None = None
    rejected: Work | None = None

    def timed_class(self) -> tuple[Any, ...]:
        """Layers that are timed as one."""
        width = round(math.log(max(self.work.stored, 1)) / math.log(CLASS_WIDTH))
        dtype = self.layer.linear.weight.dtype
        kinds = tuple(sorted(work.kind for work in self.candidates))
        return self.statistics.rows, self.statistics.columns, self.work.kind, kinds, dtype, width

    def settle(self, kind: str, timing: Paired, trainable: bool) -> None:
        """Take the fastest kind of this layer's class and its timing; dense where that is faster."""
        self.timing = timing
        self.work = next(work for work in self.candidates if work.kind == kind)
        if timing.speedup < LEAST_SPEEDUP and not trainable:
            self.rejected, self.work = self.work, self.dense

    def predicted_speedup(self, work: Work) -> float:
        return self.costs.seconds(self.dense) / max(self.costs.seconds(work), 1e-12)

    def layer_plan(self, tokens: int) -> LayerPlan:
        statistics, weight, timing = self.statistics, self.layer.linear.weight, self.timing
        predicted, dense, measured = self._predicted(self.work), self._predicted(self.dense), None
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
            dense_us=_micro(dense),
            nbytes=self.work.nbytes,
            dense_nbytes=weight.nbytes,
            reason=self._reason(predicted, dense),
            tokens=tokens,
            vector_rows=self.work.vector_rows,
        )

    def _predicted(self, work: Work) -> float | None:
        return self.costs.seconds(work) if self.costs.knows(work) else None

    def _reason(self, predicted: float | None, dense: float | None) -> str:
        if self.asked:
            reason = "asked for"
        elif self.statistics.full:
            reason = "nothing is pruned"
        elif self.rejected and self.timing:
            reason = f"{self.rejected.format} measured {self.timing.speedup:.2f}x dense"
        elif self.work == self.dense:
            reason = "no format is predicted to be faster"
        elif self.timing:
            reason = f"measured {self.timing.speedup:.1f}x dense"
        elif predicted and dense:
            reason = f"predicted {dense / predicted:.1f}x dense"
        else:
            reason = "no figures: the format that stores least"
        half = self.layer.linear.weight.dtype == torch.float16
        return f"{reason}; computed in float32" if half else reason


def _verify(drafts: list[_Draft], tokens: int, trainable: bool) -> None:
    """Time the densest layer of each class in turn with prepacked dense, and give its class what won."""
    classes = defaultdict(list)
    for draft in drafts:
        classes[draft.timed_class()].append(draft)
    for members in classes.values():
        densest = max(members, key=lambda draft: draft.work.stored)
        kind, timing = _fastest(densest, tokens)
        for draft in members:
            draft.settle(kind, timing, trainable)


def _fastest(draft: _Draft, tokens: int) -> tuple[str, Paired]:
    """The fastest of the first candidates: further ones are timed while they are predicted to be clearly
    faster than what was measured so far, so that neither a wrong prediction nor noise decides."""
    first, *others = draft.candidates[:MAX_TIMED_FORMATS]
    best, least = first, _time_against_dense(draft, first, tokens)
    for work in others:
        if work == draft.dense or draft.predicted_speedup(work) < CLEARLY_FASTER * least.speedup:
            break
        timing = _time_against_dense(draft, work, tokens)
        if timing.speedup > CLEARLY_FASTER * least.speedup:
            best, least = work, timing
    return best.kind, least


@torch.no_grad()
def _time_against_dense(draft: _Draft, work: Work, tokens: int) -> Paired:
    linear = draft.layer.linear
    dtype = linear.weight.dtype
    timed = min(tokens, MAX_TIMED_TOKENS)
    # Left over weights are no part of this: inf or NaN would be timed on their own slow path.
    weight = torch.randn(linear.weight.shape, generator=torch.Generator().manual_seed(0)).to(STORED[dtype])
    x = torch.randn(timed, linear.in_features, generator=torch.Generator().manual_seed(1)).to(dtype)
    sparse = formats.pack(weight, draft.layer.mask, format=work.format, **work.options)
    dense = formats.pack(weight, draft.layer.mask, format="dense", tokens=timed)
    timing = paired(lambda: ops.linear(x, sparse, linear.bias), lambda: ops.linear(x, dense, linear.bias))
    scale = tokens / timed
    return replace(timing, mine=timing.mine * scale, other=timing.other * scale)


def _time(layer: LayerPlan) -> float | None:
    return layer.measured_us or layer.predicted_us


def _micro(seconds: float | None) -> float | None:
    return None if seconds is None else seconds * 1e6


def _cells(layer: LayerPlan) -> tuple[str, ...]:
    def micro(value: float | None) -> str:
        return "-" if value is None else f"{value:.0f} us"

    return (
        layer.key,
        "x".join(map(str, layer.shape)),
        f"{layer.sparsity:.1%}",
        layer.label,
        micro(layer.predicted_us),
        micro(layer.measured_us),
        micro(layer.dense_us),
        f"{layer.nbytes / 1024:.0f}",
        f"{layer.nbytes / layer.dense_nbytes:.2f}x",
        layer.reason,
    )
