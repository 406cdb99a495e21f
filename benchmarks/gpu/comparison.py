"""Comparison of several implementations: their outputs, then paired timings, each as a CUDA graph."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch._dynamo.exc import FailOnRecompileLimitHit

from benchmarks.gpu.device import Device, Work
from sparsebert.bench.output_check import OutputCheck, require
from sparsebert.bench.runner import quantiles
from sparsebert.bench.timer import Timings, alternate
from sparsebert_kernels.errors import first_line
from sparsebert_kernels.timing import MAX_SPREAD

# Limit of the rounding error, relative to that of torch's operator in the same dtype.
TIMES_TORCH = 2.0
TIMES_TORCH_DRY = 16.0  # the interpreter truncates instead of rounding
SLACK = 1e-6
MAX_BASELINE_ERROR = 0.05


@dataclass(frozen=True)
class Side:
    """One implementation.

    Attributes:
        make: Called on the stream of the measurement. Returns the work to time, or several works over
            different tensors, which take turns so that none finds its tensors in the cache.
        answers: Converts the result of the work to the tensors to compare.
        exact: Expected tensors, if they differ from those of the other sides (another mask).
        required: Whether its failure fails the comparison; other failures are noted.
    """

    make: Callable[[], Work | Sequence[Work]]
    answers: Callable[[Any], Sequence[Tensor]] = lambda returned: [returned]
    exact: Sequence[Tensor] | None = None
    required: bool = False


def compare(
    device: Device,
    sides: Mapping[str, Side],
    exact: Sequence[Tensor],
    *,
    baseline: str,
    budget: float = 0.25,
) -> dict[str, Any]:
    """Compare the outputs of all sides, then time them in turn.

    The error of a side is its largest difference from ``exact`` over the largest exact value; its limit is
    twice the baseline's error. A side that fails or exceeds the limit is excluded and noted, unless it is
    required.

    Args:
        device: The GPU, or its stand-in.
        sides: Implementations by name.
        exact: Expected tensors in float64.
        baseline: Name of the side that ratios refer to.
        budget: Seconds of timed rounds.

    Returns:
        Fields of a record: "us", "ratio" (the baseline's time over the side's), "gate", "notes", "rounds" and
        more.

    Raises:
        OutputMismatchError: A required side is wrong.
        FailOnRecompileLimitHit: torch.compile would have run a side eagerly.
    """
    captured: dict[str, Sequence[Work]] = {}
    notes = {}
    checks: dict[str, OutputCheck] = {}
    for name in sorted(sides, key=lambda name: name != baseline):
        side = sides[name]
        try:
            with device.on_stream():
                made = side.make()
                works = list(made) if isinstance(made, Sequence) else [made]
                answers = [tensor.detach().double() for tensor in side.answers(works[0]())]
            device.synchronize()
            error = max(map(_error, answers, side.exact or exact))
            checks[name] = OutputCheck(name, error, error_limit(checks, baseline, device.dry_run))
            require([checks[name]])
            device.require_capture(works)
            captured[name] = works
        except FailOnRecompileLimitHit:
            raise  # a fault of the benchmark, not of the side
        except Exception as problem:  # other projects' code may fail in any way
            if side.required or name == baseline or not device.alive():
                raise
            notes[name] = f"{type(problem).__name__}: {first_line(problem)[:160]}"
    runs = device.graphs(captured)
    timings = alternate(runs, budget=0 if device.dry_run else budget, min_rounds=7, max_rounds=400)
    gate = {name: check for name, check in checks.items() if name in runs}
    return {**timing_fields(timings, gate, baseline), "notes": notes}


def _error(answer: Tensor, exact: Tensor) -> float:
    if answer.shape != exact.shape:
        raise ValueError(f"returns shape {list(answer.shape)}, expected {list(exact.shape)}")
    difference = (answer - exact).abs().max().item()
    largest = exact.abs().max().item()
    return float("inf") if difference != difference else difference / (largest or 1.0)


def timing_fields(
    timings: Timings, checks: Mapping[str, OutputCheck], baseline: str, calls: int = 1
) -> dict[str, Any]:
    """Return the fields of a record that are common to all comparisons.

    Args:
        timings: Times of all sides that were checked.
        checks: The checks by side.
        baseline: The side that ratios refer to.
        calls: Calls in each of the timed runs.
    """
    spread = {name: timings.latency(name).spread for name in checks}
    return {
        "baseline": baseline,
        "us": {name: quantiles(timings.latency(name), 1e6 / calls) for name in checks},
        "ratio": {name: quantiles(timings.ratio(baseline, name)) for name in checks if name != baseline},
        "gate": {name: check.record() for name, check in checks.items()},
        "rounds": timings.rounds,
        "busy": max(spread.values()) > MAX_SPREAD,
        "spread": spread,
    }


def error_limit(checks: Mapping[str, OutputCheck], baseline: str, dry_run: bool) -> float:
    """Return the limit of the error; the baseline's error sets it for the others."""
    if baseline in checks:
        times = TIMES_TORCH_DRY if dry_run else TIMES_TORCH
        return times * checks[baseline].error + SLACK
    return MAX_BASELINE_ERROR
