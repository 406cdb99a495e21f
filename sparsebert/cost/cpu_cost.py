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
from dataclasses import astuple
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sparsebert.atomic import write_text
from sparsebert.cost.mask_statistics import VECTOR_ROWS, MaskStatistics
from sparsebert.cost.work import Cost, WorkEstimate, estimate_work
from sparsebert.json_object import load_json
from sparsebert_kernels import __version__, cpu, formats, ops
from sparsebert_kernels.cpu import native
from sparsebert_kernels.timing import Least, least

# Costs are measured for powers of two of tokens only: a partial tile costs as much as a full one.
MAX_CALIBRATED_TOKENS = 512
SECONDS_A_PROBLEM = 0.012

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
}
SLOWDOWN = {"avx512": 1.0, "avx2": 2.0, "neon": 3.0}
BASELINE_SLOWDOWN = 4.0


class CpuCostModel:
    """Predicts the seconds of a layer, for one dtype and number of tokens on this machine.

    Args:
        costs: The cost of each kind of work that pays here (``runnable``).
        tokens: Rows of x that the layer sees.
    """

    def __init__(self, costs: dict[str, Cost], tokens: int) -> None:
        self.costs, self.tokens = costs, tokens

    def supports(self, work: WorkEstimate) -> bool:
        """Whether there are costs for this kind of work."""
        return work.kind in self.costs

    def seconds(self, work: WorkEstimate) -> float:
        """Predict the seconds of a layer.

        Raises:
            KeyError: The kind of work is not supported.
        """
        return self.costs[work.kind].seconds(work, self.tokens)


def cost_model(dtype: torch.dtype, tokens: int, *, measure: bool = True) -> CpuCostModel:
    """Return the cost model for layers that store ``dtype`` and see ``tokens`` rows of x at a time.

    Args:
        dtype: The dtype of the packed values.
        tokens: Rows of x.
        measure: Read the costs from this machine's cache file, or measure them (a second or two) and cache
            them unless the machine was busy. If False, use the built-in costs.
    """
    if not measure:
        return CpuCostModel(built_in(dtype), tokens)
    calibrated = min(MAX_CALIBRATED_TOKENS, 2 ** round(math.log2(tokens)))
    return CpuCostModel(_measured(dtype, calibrated, _fingerprint()), tokens)


def built_in(dtype: torch.dtype) -> dict[str, Cost]:
    """Return the built-in costs, which depend on nothing but the dtype and the instruction set."""
    factors = (factor for name, factor in SLOWDOWN.items() if cpu.instruction_set().startswith(name))
    slowdown = next(factors, BASELINE_SLOWDOWN)
    share = 0.5 if dtype == torch.bfloat16 else 1.0
    return {
        kind: Cost(fixed, slowdown * share * weight * 1e-12, line * 1e-12)
        for kind, (fixed, weight, line) in BUILT_IN.items()
        if kind in runnable(dtype)
    }


def runnable(dtype: torch.dtype) -> tuple[str, ...]:
    """Return the kinds of work that pay here: sparse ones that the native library runs, else CSR."""
    x = torch.empty(1, 1, dtype=dtype)
    kinds = ["dense", "compact"]
    if native.supports("element", dtype, x):
        kinds.append("element")
    if native.supports("vector", dtype, x):
        kinds += [f"vector {height}x1" for height in VECTOR_ROWS]
    if len(kinds) == 2 and dtype == torch.float32:
        kinds.append("csr")
    return tuple(kinds)


def cache_file(fingerprint: tuple[str, ...] | None = None) -> Path:
    """Return the path of this machine's cache file, below ``$XDG_CACHE_HOME`` or ``~/.cache``."""
    digest = hashlib.sha256("\n".join(fingerprint or _fingerprint()).encode()).hexdigest()[:16]
    root = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    return Path(root) / "sparsebert" / f"costs-{digest}.json"


def _fingerprint() -> tuple[str, ...]:
    """Return everything that the measured costs depend on."""
    return (
        f"cpu: {_cpu_model()}",
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
def _cpu_model() -> str:
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


@functools.cache
def _measured(dtype: torch.dtype, tokens: int, fingerprint: tuple[str, ...]) -> dict[str, Cost]:
    path = cache_file(fingerprint)
    entry = f"{str(dtype).removeprefix('torch.')}, {tokens} tokens"
    cached = _read(path, fingerprint)
    if entry in cached and cached[entry].keys() == set(runnable(dtype)):
        return cached[entry]
    costs, busy = calibrate(dtype, tokens)
    if not busy:
        _write(path, fingerprint, {**cached, entry: costs})
    return costs


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


def calibrate(dtype: torch.dtype, tokens: int) -> tuple[dict[str, Cost], bool]:
    """Time every kind of work on a few small layers and fit its ``Cost``.

    Returns:
        The cost of each kind of work, and whether the machine was too busy for one of the timings.
    """
    generator = torch.Generator().manual_seed(0)
    costs: dict[str, Cost] = {}
    busy = False
    for kind in runnable(dtype):  # dense first
        # A live rectangle is multiplied like a dense matrix; only selecting its rows and columns is extra.
        per_stored = costs["dense"].per_stored if kind == "compact" else None
        features, timings = _times(kind, dtype, tokens, generator)
        costs[kind] = _fit(features, [timing.seconds for timing in timings], per_stored)
        busy |= any(timing.busy for timing in timings)
    return costs, busy


@torch.no_grad()
def _times(
    kind: str, dtype: torch.dtype, tokens: int, generator: torch.Generator
) -> tuple[list[list[float]], list[Least]]:
    features, timings = [], []
    for rows, columns, density in PROBLEMS["dense" if kind in ("dense", "compact") else "sparse"]:
        mask = _mask(kind, rows, columns, density, generator)
        weight = torch.randn(rows, columns, generator=generator).to(dtype)
        x = torch.randn(tokens, columns, generator=generator).to(dtype)
        bias = torch.zeros(rows, dtype=dtype)
        statistics = MaskStatistics.of(mask)
        work = next(work for work in estimate_work(statistics, dtype, formats.FORMATS) if work.kind == kind)
        packed = formats.pack(weight, mask, format=work.format, **work.options)
        timings.append(least(lambda: ops.linear(x, packed, bias), budget=SECONDS_A_PROBLEM))  # noqa: B023
        features.append([1.0, tokens * work.stored, tokens * work.lines])
    return features, timings


def _mask(kind: str, rows: int, columns: int, density: float, generator: torch.Generator) -> torch.Tensor:
    if kind == "dense":
        return torch.ones(rows, columns, dtype=torch.bool)
    if kind == "compact":  # half of the rows and of the columns are live
        mask = torch.ones(rows, columns, dtype=torch.bool)
        mask[rows // 2 :] = False
        mask[:, columns // 2 :] = False
        return mask
    height = next((rows for rows in VECTOR_ROWS if kind == f"vector {rows}x1"), 1)
    return (torch.rand(rows // height, columns, generator=generator) < density).repeat_interleave(height, 0)


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
