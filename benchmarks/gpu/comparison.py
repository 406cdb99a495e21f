"""Several ways to compute the same: their answers first, then paired timings, each as a CUDA graph."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from benchmarks.gpu.device import Device, Work
from benchmarks.gpu.session import context_lost
from sparsebert.bench.output_check import OutputCheck, require
from sparsebert.bench.runner import quantiles
from sparsebert.bench.timer import alternate
from sparsebert_kernels.errors import first_line
from sparsebert_kernels.timing import MAX_SPREAD

# Rounding errors may be this many times those of torch's own operator in the same dtype.
TIMES_TORCH = 2.0
TIMES_TORCH_DRY = 16.0  # the interpreter truncates where a GPU rounds
SLACK = 1e-6
MOST = 0.05  # that the baseline itself may be off


@dataclass(frozen=True)
class Side:
    """One way. ``make`` is called on the stream of the measurement and gives the work to time, or several
    that do the same over other tensors: they then take turns, so that none finds its own in the cache.

    answers   what the work returns -> tensors to compare
    exact     what they must be, where it is not what all sides have to give (another mask)
    required  whether its failure fails the comparison; a baseline that cannot run is noted
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
    """Fields of a record: `us`, `ratio` to the baseline (its time over theirs), `gate`, `notes`, `rounds`.

    The error of a side is its largest difference from ``exact`` (float64) over the largest exact value, and
    may be twice the baseline's. Raises OutputMismatchError where a required side is further off; another one is left
    out, like one that cannot run, and `notes` says why.
    """
    runs, notes = {}, {}
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
            checks[name] = OutputCheck(name, error, _tolerance(checks, baseline, error, device.dry_run))
            require([checks[name]])
            runs[name] = device.graph(*works)
        except Exception as problem:  # a baseline may fail in any way it likes
            if side.required or name == baseline or context_lost(problem):
                raise
            notes[name] = f"{type(problem).__name__}: {first_line(problem)[:160]}"
    timings = alternate(runs, budget=0 if device.dry_run else budget, min_rounds=7, max_rounds=400)
    spread = {name: timings.latency(name).spread for name in runs}
    return {
        "baseline": baseline,
        "us": {name: quantiles(timings.latency(name), 1e6) for name in runs},
        "ratio": {name: quantiles(timings.ratio(baseline, name)) for name in runs if name != baseline},
        "gate": {name: check.record() for name, check in checks.items() if name in runs},
        "notes": notes,
        "rounds": timings.rounds,
        "busy": max(spread.values()) > MAX_SPREAD,
        "spread": spread,
    }


def _error(answer: Tensor, exact: Tensor) -> float:
    if answer.shape != exact.shape:
        raise ValueError(f"answers {list(answer.shape)}, the exact ones are {list(exact.shape)}")
    difference = (answer - exact).abs().max().item()
    largest = exact.abs().max().item()
    return float("inf") if difference != difference else difference / (largest or 1.0)


def _tolerance(checks: Mapping[str, OutputCheck], baseline: str, error: float, dry_run: bool) -> float:
    """The baseline sets it, unless it is plainly wrong itself."""
    if baseline in checks:
        times = TIMES_TORCH_DRY if dry_run else TIMES_TORCH
        return times * checks[baseline].error + SLACK
    return MOST
