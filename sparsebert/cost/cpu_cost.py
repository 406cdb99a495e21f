"""The cost model of CPUs: costs measured once and cached in a file, or built-in ones."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import itertools
import json
import math
import os
import platform
import re
import time
from collections.abc import Iterator, Sequence
from dataclasses import astuple, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sparsebert.atomic import write_text
from sparsebert.cost.mask_statistics import VECTOR_ROWS, MaskStatistics, RowPanelStatistics
from sparsebert.cost.precision import DTYPES, pack_as
from sparsebert.cost.work import Cost, WorkEstimate, estimate_row_panel_work, estimate_work, format_label
from sparsebert.json_object import load_json
from sparsebert_kernels import __version__, cpu, formats, ops
from sparsebert_kernels.cpu import native
from sparsebert_kernels.cpu.row_panels import STEP_COST, step_costs
from sparsebert_kernels.formats import RowPanelSparse, VectorInt8, row_panel
from sparsebert_kernels.timing import Least, least

# Costs are measured for powers of two of tokens only: a partial tile costs as much as a full one.
MAX_CALIBRATED_TOKENS = 512
SECONDS_A_PROBLEM = 0.012
# Rows of the row panels that calibration times.
TIMED_HEIGHT = 32
# Seconds after an attempt to measure costs on a busy machine until the next one.
RETRY_SECONDS = 60.0

# (out, in, density) of the layers that calibration times.
PROBLEMS = {
    "sparse": ((256, 256, 0.1), (768, 768, 0.1), (768, 768, 0.4), (3072, 768, 0.05)),
    "dense": ((128, 128, 1.0), (384, 384, 1.0), (768, 768, 1.0), (1536, 512, 1.0)),
}

# (fixed seconds, picoseconds per stored weight and token, picoseconds per line and token): float32 on one
# core with AVX-512 at 4.4 GHz. bfloat16 halves the arithmetic; other instruction sets take SLOWDOWN times as
# long.
BUILT_IN = {
    "element": (2e-5, 14.0, 120.0),
    "vector 2x1": (2e-5, 10.5, 90.0),
    "vector 4x1": (2e-5, 8.0, 80.0),
    "vector 8x1": (2e-5, 7.7, 80.0),
    "dense": (2e-5, 7.4, 20.0),
    "compact": (5e-5, 7.4, 200.0),
    "csr": (5e-5, 70.0, 200.0),
    **{f"row_panel {rows}x2 bf16": (2e-5, 7.0, 80.0) for rows in row_panel.PANEL_ROWS},
    **{f"row_panel {rows}x4 int8": (2e-5, 5.0, 80.0) for rows in row_panel.PANEL_ROWS},
    "vector_int8 2x1": (2e-5, 5.0, 150.0),
    "vector_int8 4x1": (2e-5, 3.0, 150.0),
    "vector_int8 8x1": (2e-5, 2.7, 150.0),
}
# The same with tiles of AMX, in full.
BUILT_IN_AMX = {
    "dense bf16": (2e-5, 2.4, 80.0),
    **{
        f"row_panel {rows}x{line}": (2e-5, weight * STEP_COST["tile"][rows], 80.0)
        for line, weight in (("2 bf16", 2.0), ("4 int8", 1.5))
        for rows in row_panel.PANEL_ROWS
    },
}
SLOWDOWN = {"amx": 2.0, "avx512": 1.0, "avx2": 2.0, "neon": 3.0}
BASELINE_SLOWDOWN = 4.0


# Seconds to round a value of x, or of the result, to another dtype.
ROUNDING = 60e-12
BUILT_IN_COSTS, MEASURED_COSTS, ON_ONE_THREAD = "built-in costs", "costs measured here", " on one thread"


class CpuCostModel:
    """Predicts the seconds of a layer, for one dtype and number of tokens on this machine.

    Args:
        costs: The cost of each kind of work that pays here (``runnable``).
        tokens: Rows of x that the layer sees.
        source: Source of the costs, as text.
    """

    def __init__(self, costs: dict[str, Cost], tokens: int, source: str = BUILT_IN_COSTS) -> None:
        self.costs, self.tokens, self.source = costs, tokens, source

    def supports(self, work: WorkEstimate) -> bool:
        """Whether there are costs for this kind of work."""
        return work.cost_kind in self.costs

    def seconds(self, work: WorkEstimate) -> float:
        """Predict the seconds of a layer.

        Raises:
            KeyError: The kind of work is not supported.
        """
        return self.costs[work.cost_kind].seconds(work, self.tokens)


def cost_model(dtype: torch.dtype, tokens: int, *, measure: bool = True) -> CpuCostModel:
    """Return the cost model for layers that store ``dtype`` and see ``tokens`` rows of x at a time.

    Args:
        dtype: The dtype of the packed values.
        tokens: Rows of x.
        measure: Read the costs from this machine's cache file, or measure them (a second or two) and cache
            them; ``quick_cost_model`` if the machine is too busy for that. If False, use the built-in costs.
    """
    if not measure:
        return CpuCostModel(built_in(dtype), tokens)
    costs = _measured_costs(dtype, tokens)
    return CpuCostModel(costs, tokens, MEASURED_COSTS) if costs else quick_cost_model(dtype, tokens)


def quick_cost_model(dtype: torch.dtype, tokens: int) -> CpuCostModel:
    """Return a cost model in half a second, busy machines included; arguments as for ``cost_model``.

    Without costs in the cache file for the present number of threads, those of one thread serve: they can be
    measured on a busy machine, and their proportions are similar.
    """
    fingerprint = _fingerprint()
    cached = _read(cache_file(fingerprint), fingerprint).get(_entry(dtype, tokens))
    if cached and cached.keys() == set(runnable(dtype)):
        return CpuCostModel(cached, tokens, MEASURED_COSTS)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        costs = _measured_costs(dtype, tokens)
    finally:
        torch.set_num_threads(threads)
    if costs is None:
        return CpuCostModel(built_in(dtype), tokens, f"{BUILT_IN_COSTS}: the machine is too busy to measure")
    return CpuCostModel(costs, tokens, MEASURED_COSTS + ON_ONE_THREAD * (threads > 1))


def with_lower_precisions(model: CpuCostModel, dtype: torch.dtype, precisions: Sequence[str]) -> CpuCostModel:
    """Return a cost model that also knows the kinds of work in ``precisions`` below that of ``dtype``.

    Their costs come from where those of ``model`` do. If the machine is too busy to measure them, they are
    left out.

    Args:
        model: The cost model for layers that store ``dtype``.
        dtype: The layers' dtype.
        precisions: See ``sparsebert.cost.precision.lower_precisions``.
    """
    costs = dict(model.costs)
    threads = torch.get_num_threads()
    if model.source.endswith(ON_ONE_THREAD):
        torch.set_num_threads(1)
    try:
        for precision in precisions:
            if model.source.startswith(BUILT_IN_COSTS):
                costs |= built_in(dtype, precision)
            else:
                costs |= _measured_costs(dtype, model.tokens, precision) or {}
    finally:
        torch.set_num_threads(threads)
    return CpuCostModel(costs, model.tokens, model.source)


def _measured_costs(dtype: torch.dtype, tokens: int, precision: str = "") -> dict[str, Cost] | None:
    """Return the measured costs for the present number of threads; None if the machine is too busy."""
    calibration = _measured(dtype, _calibrated(tokens), _fingerprint(), precision)
    if calibration.costs is None and time.monotonic() > calibration.moment + RETRY_SECONDS:
        _measured.cache_clear()
        calibration = _measured(dtype, _calibrated(tokens), _fingerprint(), precision)
    return calibration.costs


def _calibrated(tokens: int) -> int:
    """Return the number of tokens that costs are measured for."""
    return min(MAX_CALIBRATED_TOKENS, 2 ** round(math.log2(tokens)))


def _entry(dtype: torch.dtype, tokens: int, precision: str = "") -> str:
    """Return the key of the costs in the cache file."""
    lower = f" in {precision}" if precision else ""
    return f"{str(dtype).removeprefix('torch.')}{lower}, {_calibrated(tokens)} tokens"


def built_in(dtype: torch.dtype, precision: str = "") -> dict[str, Cost]:
    """Return the built-in costs, which depend on nothing but the arguments and the instruction set.

    Args:
        dtype: The layers' dtype.
        precision: A lower precision to compute in.
    """
    factors = (factor for name, factor in SLOWDOWN.items() if cpu.instruction_set().startswith(name))
    slowdown = next(factors, BASELINE_SLOWDOWN)
    # Without products of bf16, each value is converted to fp32 and back.
    halved = dtype == torch.bfloat16 or (precision == "bf16" and native.has_bf16_products())
    share, rounding = 0.5 if halved else 1.0, ROUNDING if precision else 0.0
    costs = {}
    for kind in runnable(dtype, precision):
        fixed, weight, line = BUILT_IN.get(kind) or BUILT_IN[kind.removesuffix(f" {precision}")]
        costs[kind] = Cost(fixed, slowdown * share * weight * 1e-12, line * 1e-12 + rounding)
    if cpu.instruction_set().startswith("amx"):
        costs |= {
            kind: Cost(fixed, weight * 1e-12, line * 1e-12)
            for kind, (fixed, weight, line) in BUILT_IN_AMX.items()
            if kind in costs
        }
    return costs


def runnable(dtype: torch.dtype, precision: str = "") -> tuple[str, ...]:
    """Return the kinds of work that pay here: sparse ones that the native library runs, else CSR.

    Args:
        dtype: The layers' dtype.
        precision: A lower precision to compute in.
    """
    if precision:
        exact = runnable(DTYPES[precision]) if precision == "bf16" else _int8_kinds()
        return (*(f"{kind} {precision}" for kind in exact), *row_panel_kinds(precision))
    x = torch.empty(1, 1, dtype=dtype)
    kinds = ["dense", "compact"]
    if native.supports("element", dtype, x):
        kinds.append("element")
    if native.supports("vector", dtype, x):
        kinds += [f"vector {height}x1" for height in VECTOR_ROWS]
    if len(kinds) == 2 and dtype == torch.float32:
        kinds.append("csr")
    return tuple(kinds)


def _int8_kinds() -> tuple[str, ...]:
    if not native.supports(VectorInt8.name, torch.int8, torch.empty(1, 1)):
        return ()
    return tuple(format_label(VectorInt8.name, (height, 1)) for height in VECTOR_ROWS)


def row_panel_kinds(precision: str) -> dict[str, int]:
    """Return the kinds of work over row panels that the library runs here, each with its number of rows."""
    stored = DTYPES[precision]
    if not native.supports(RowPanelSparse.name, stored, torch.empty(1, 1)):
        return {}
    line = row_panel.LINE_COLUMNS[stored]
    return {format_label(RowPanelSparse.name, (rows, line), precision): rows for rows in row_panel.PANEL_ROWS}


def cache_file(fingerprint: tuple[str, ...] | None = None) -> Path:
    """Return the path of this machine's cache file, below ``$XDG_CACHE_HOME`` or ``~/.cache``."""
    digest = hashlib.sha256("\n".join(fingerprint or _fingerprint()).encode()).hexdigest()[:16]
    root = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    return Path(root) / "sparsebert" / f"costs-{digest}.json"


def _fingerprint() -> tuple[str, ...]:
    """Return everything that the measured costs depend on."""
    return (
        f"cpu: {cpu_model()}",
        f"instruction set: {cpu.instruction_set()}",
        f"kernels: {__version__} {_library_digest()}",
        f"torch: {torch.__version__}",
        f"threads: {torch.get_num_threads()}",
    )


@functools.cache
def _library_digest() -> str:
    try:
        library = Path(os.environ.get(native.LIBRARY_VARIABLE) or native.LIBRARY).read_bytes()
    except OSError:
        return "without native library"
    return hashlib.sha256(library).hexdigest()[:16]


@functools.cache
def cpu_model() -> str:
    """Return the CPU's vendor, family, model and name as text."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    wanted = ("vendor_id", "cpu family", "model", "model name", "CPU implementer", "CPU part")
    fields = {line.split(":")[0].strip(): line.split(":", 1)[1].strip() for line in lines if ":" in line}
    return (
        " ".join(fields[name] for name in wanted if name in fields)
        or platform.processor()
        or platform.machine()
    )


@dataclass(frozen=True)
class _Calibration:
    """Measured costs, None if the machine was too busy; and the moment, in seconds of ``time.monotonic``."""

    costs: dict[str, Cost] | None
    moment: float


@functools.cache
def _measured(dtype: torch.dtype, tokens: int, fingerprint: tuple[str, ...], precision: str) -> _Calibration:
    path = cache_file(fingerprint)
    entry = _entry(dtype, tokens, precision)
    cached = _read(path, fingerprint)
    if entry in cached and cached[entry].keys() == set(runnable(dtype, precision)):
        return _Calibration(cached[entry], time.monotonic())
    costs, busy = calibrate(dtype, tokens, precision) if precision else calibrate(dtype, tokens)
    if busy:
        return _Calibration(None, time.monotonic())
    _write(path, fingerprint, {**cached, entry: costs})
    return _Calibration(costs, time.monotonic())


def _read(path: Path, fingerprint: tuple[str, ...]) -> dict[str, dict[str, Cost]]:
    """Return the entries of a cache file; {} if it is missing, malformed or of another machine."""
    try:
        content = load_json(path.read_text(encoding="utf-8"))
        if content["machine"] != list(fingerprint):
            return {}
        return {
            entry: {kind: _cost(values) for kind, values in costs.items()}
            for entry, costs in content["seconds"].items()
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}


def _cost(values: Any) -> Cost:
    fixed, per_stored, per_line = (float(value) for value in values)
    if not all(math.isfinite(value) and value >= 0 for value in (fixed, per_stored, per_line)):
        raise ValueError(f"costs must be finite and not negative, got {values}")
    return Cost(fixed, per_stored, per_line)


def _write(path: Path, fingerprint: tuple[str, ...], entries: dict[str, dict[str, Cost]]) -> None:
    seconds = {
        entry: {kind: astuple(cost) for kind, cost in costs.items()} for entry, costs in entries.items()
    }
    text = json.dumps({"machine": fingerprint, "seconds": seconds}, indent=1)
    with contextlib.suppress(OSError):  # without a cache, the next process measures again
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, text)


def calibrate(dtype: torch.dtype, tokens: int, precision: str = "") -> tuple[dict[str, Cost], bool]:
    """Time every kind of work on a few small layers and fit its ``Cost``.

    Args:
        dtype: The layers' dtype.
        tokens: Rows of x.
        precision: A lower precision to compute in.

    Returns:
        The cost of each kind of work, and whether the machine was too busy for one of the timings; costs are
        then missing.
    """
    generator = torch.Generator().manual_seed(0)
    costs: dict[str, Cost] = {}
    panels = row_panel_kinds(precision) if precision else {}
    for kind in runnable(dtype, precision):  # dense first
        if kind in panels and panels[kind] != TIMED_HEIGHT:
            continue
        # A live rectangle is multiplied like a dense matrix; only selecting its rows and columns is extra.
        dense = costs.get(f"dense {precision}".rstrip())
        per_stored = dense.per_stored if dense and kind.startswith("compact") else None
        features, seconds = [], []
        for work, timing in _timings(kind, dtype, tokens, generator, precision):
            if timing.busy:
                return costs, True
            features.append([1.0, tokens * work.stored, tokens * work.lines])
            seconds.append(timing.seconds)
        costs[kind] = _fit(features, seconds, per_stored)
    return costs | _of_other_heights(costs, panels), False


def _of_other_heights(costs: dict[str, Cost], panels: dict[str, int]) -> dict[str, Cost]:
    """Return the costs of all row panels, from those of ``TIMED_HEIGHT`` rows.

    Noise would order the heights: they differ by less than timings of layers do, most of whose time goes to
    the layout of row-major activations.
    """
    if not panels:
        return {}
    factors = step_costs()
    timed = costs[next(kind for kind, height in panels.items() if height == TIMED_HEIGHT)]
    per_stored = timed.per_stored / factors[TIMED_HEIGHT]
    return {kind: replace(timed, per_stored=per_stored * factors[height]) for kind, height in panels.items()}


@torch.no_grad()
def _timings(
    kind: str, dtype: torch.dtype, tokens: int, generator: torch.Generator, precision: str
) -> Iterator[tuple[WorkEstimate, Least]]:
    """Time one kind of work on each of its ``PROBLEMS``."""
    plain = kind.removesuffix(f" {precision}")
    stored = DTYPES[precision] if precision else dtype
    run = ops.linear_in_precision_of_weight if precision else ops.linear
    for rows, columns, density in PROBLEMS["dense" if plain in ("dense", "compact") else "sparse"]:
        mask = _mask(plain, rows, columns, density, generator)
        weight = torch.randn(rows, columns, generator=generator)
        x = torch.randn(tokens, columns, generator=generator).to(dtype)
        bias = torch.zeros(rows, dtype=dtype)
        works = _works(mask, stored, plain, precision)
        work = next(work for work in works if kind in (work.kind, work.cost_kind))
        packed = pack_as(weight, mask, stored, format=work.format, **work.options)
        yield work, least(lambda: run(x, packed, bias), budget=SECONDS_A_PROBLEM)  # noqa: B023


def _works(mask: torch.Tensor, stored: torch.dtype, kind: str, precision: str) -> Iterator[WorkEstimate]:
    """Estimate the work of ``kind``, among others."""
    statistics = MaskStatistics.of(mask)
    if kind.startswith(RowPanelSparse.name):
        return estimate_row_panel_work(statistics, RowPanelStatistics.of(mask, stored), precision)
    works = estimate_work(statistics, stored, (*formats.FORMATS, *formats.INT8_FORMATS))
    return (replace(work, precision=precision) for work in works)


def _mask(kind: str, rows: int, columns: int, density: float, generator: torch.Generator) -> torch.Tensor:
    if kind == "dense":
        return torch.ones(rows, columns, dtype=torch.bool)
    if kind == "compact":  # half of the rows and of the columns are live
        mask = torch.ones(rows, columns, dtype=torch.bool)
        mask[rows // 2 :] = False
        mask[:, columns // 2 :] = False
        return mask
    size = re.fullmatch(r"\D+(\d+)x(\d+)", kind)
    height, width = (int(size[1]), int(size[2])) if size else (1, 1)
    blocks = torch.rand(-(-rows // height), -(-columns // width), generator=generator) < density
    return blocks.repeat_interleave(height, 0).repeat_interleave(width, 1)[:rows, :columns]


def _fit(features: list[list[float]], seconds: list[float], per_stored: float | None = None) -> Cost:
    """Fit costs by non-negative least squares of relative errors, trying every set of zero coefficients.

    ``per_stored`` is fitted like the others unless it is set. It is never zero: timings that make work free
    were disturbed by other processes.
    """
    scaled = np.array(features) / np.array(seconds)[:, None]
    target = np.ones(len(seconds)) - (per_stored or 0.0) * scaled[:, 1]
    best, least_error = np.zeros(3), math.inf
    for used in itertools.product((True, False), (True,) if per_stored is None else (False,), (True, False)):
        columns = np.flatnonzero(used)
        coefficients = np.zeros(3)
        coefficients[columns] = np.linalg.lstsq(scaled[:, columns], target, rcond=None)[0]
        error = float(np.square(scaled @ coefficients - target).sum())
        if (coefficients >= 0).all() and error < least_error:
            best, least_error = coefficients, error
    fixed, fitted, per_line = (float(value) for value in best)
    return Cost(fixed, fitted if per_stored is None else per_stored, per_line)
