"""Paired timing of any number of sides, with the contention of the machine.

A side is a callable that runs its work once and returns the seconds this took (``Run``). ``on_wall`` and
``on_cuda`` make one from a plain callable; a baseline in another process times itself. The order within a
round is fixed: each side starts with the caches of its predecessor, like a layer inside a model.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from sparsebert.bench.contention import Contention, Watch
from sparsebert.html_table import table_html
from sparsebert_kernels.timing import MAX_SPREAD, Quantiles, rounds

if TYPE_CHECKING:
    import torch

Run = Callable[[], float]

# Threads that wait for a core in use by another process wake at the next scheduler slice: all implementations
# then take 6 to 8 ms, and every ratio is 1.00.
PLATEAU_SECONDS = (0.0055, 0.009)
PLATEAU_SHORTFALL = 0.6


@dataclass(frozen=True)
class Timings:
    """Seconds of each side in each round, and the contention meanwhile."""

    seconds: dict[str, list[float]]
    threads: int
    contention: Contention = field(default_factory=Contention)

    @property
    def rounds(self) -> int:
        """Number of rounds."""
        return min((len(samples) for samples in self.seconds.values()), default=0)

    def latency(self, side: str) -> Quantiles:
        """Return the quantiles of the seconds of one run."""
        return Quantiles.of(self.seconds[side])

    def ratio(self, baseline: str, side: str) -> Quantiles:
        """Return the quantiles of the per-round speed-up of ``side`` over ``baseline``."""
        pairs = zip(self.seconds[baseline], self.seconds[side], strict=True)
        return Quantiles.of([slow / fast for slow, fast in pairs])

    def _repr_html_(self) -> str:
        first = next(iter(self.seconds), "")

        def cells(side: str) -> tuple[str, ...]:
            times, ratio = self.latency(side), self.ratio(first, side)
            span = f"{1e3 * times.p20:.2f} to {1e3 * times.p80:.2f}"
            return side, f"{1e3 * times.median:.2f}", span, f"{ratio.median:.2f}x"

        threads = f"{self.threads} thread{'s' * (self.threads != 1)}"
        notes = [f"Medians of {self.rounds} paired rounds, {threads}.", *self.busy()]
        columns = ("side", "ms", "ms, p20 to p80", f"speed-up over {first}")
        return table_html("", columns, map(cells, self.seconds if self.rounds else ()), notes)

    def busy(self) -> tuple[str, ...]:
        """Return why these timings are unreliable; empty if they can be quoted."""
        reasons = list(self.contention.reasons(self.threads))
        for side in self.seconds:
            latency = self.latency(side)
            if latency.spread > MAX_SPREAD:
                reasons.append(
                    f"{side} spreads by {latency.spread:.0%} between rounds (limit {MAX_SPREAD:.0%})"
                )
        if self.threads > 1:
            stuck = [side for side, samples in self.seconds.items() if on_plateau(samples)]
            if stuck:
                reasons.append(f"{', '.join(stuck)} waits for the scheduler (6 to 8 ms plateau)")
        return tuple(reasons)


def on_plateau(seconds: list[float]) -> bool:
    """Return whether the median is on the scheduler's plateau although some rounds were far shorter."""
    low, high = PLATEAU_SECONDS
    median = statistics.median(seconds)
    return low <= median <= high and min(seconds) < PLATEAU_SHORTFALL * median


def on_wall(work: Callable[[], object], clock: Callable[[], float] = time.perf_counter) -> Run:
    """Return a run that times ``work`` with a wall clock."""

    def run() -> float:
        start = clock()
        work()
        return clock() - start

    return run


def on_cuda(work: Callable[[], object], device: torch.device | None = None) -> Run:
    """Return a run that times ``work`` with CUDA events on the current stream of its device.

    Args:
        work: Runs on the device.
        device: A GPU; the current one by default.
    """
    import torch

    def run() -> float:
        with torch.cuda.device(device):  # events of another one would not wait for the work
            start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            start.record()
            work()
            end.record()
            end.synchronize()
            return start.elapsed_time(end) / 1e3

    return run


def repeated(run: Run, calls: int) -> Run:
    """Return a run of ``calls`` consecutive calls of ``run``, which returns their mean seconds."""

    def turn() -> float:
        return sum(run() for _ in range(calls)) / calls

    return turn


def fastest(sides: Mapping[str, Run], *, warmup: int = 2, rounds_of_each: int = 5) -> str:
    """Return the side with the least median seconds over a few rounds."""
    for run in sides.values():
        for _ in range(warmup):
            run()
    seconds = zip(*rounds(tuple(sides.values()), lambda done, _: done < rounds_of_each), strict=True)
    medians = {side: statistics.median(samples) for side, samples in zip(sides, seconds, strict=True)}
    return min(medians, key=lambda side: medians[side])


def alternate(
    sides: Mapping[str, Run],
    *,
    budget: float = 5.0,
    warmup: int = 2,
    min_rounds: int = 7,
    max_rounds: int = 200,
    threads: int = 1,
    in_worker: Collection[str] = (),
    clock: Callable[[], float] = time.perf_counter,
    on_round: Callable[[float], None] | None = None,
) -> Timings:
    """Time all sides in turn.

    Args:
        sides: Runs by name.
        budget: Seconds to spend on rounds.
        warmup: Untimed runs of each side.
        min_rounds: Minimum number of rounds, whatever the budget.
        max_rounds: Maximum number of rounds.
        threads: Threads of each side.
        in_worker: Sides that run in another process of ours; its CPU time does not count as contention.
        clock: Returns seconds.
        on_round: Called after each round with the share of the work that is done (0 to 1).

    Raises:
        ValueError: There are no sides, or ``min_rounds`` and ``max_rounds`` contradict each other.
    """
    if not sides:
        raise ValueError("nothing to time: at least one side is needed")
    if min_rounds < 1 or max_rounds < min_rounds:
        raise ValueError(
            f"min_rounds={min_rounds}, max_rounds={max_rounds}: need 1 <= min_rounds <= max_rounds"
        )
    for run in sides.values():
        for _ in range(warmup):
            run()
    seconds: dict[str, list[float]] = {side: [] for side in sides}

    def unfinished(done: int, spent: float) -> bool:
        if done and on_round is not None:
            of_budget = max(spent / budget, done / max_rounds) if budget > 0 else 1.0
            on_round(min(1.0, done / min_rounds, of_budget))
        return done < max_rounds and (done < min_rounds or spent < budget)

    watch = Watch.start()
    for turn in rounds(tuple(sides.values()), unfinished, clock):
        for side, each in zip(sides, turn, strict=True):
            seconds[side].append(each)
    elsewhere = threads * sum(sum(seconds[side]) for side in in_worker)
    return Timings(seconds, threads, watch.stop(in_workers=elsewhere))
