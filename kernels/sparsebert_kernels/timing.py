"""Timing on the machine at hand: the fastest of a few runs, and two sides that run in turn.

Runs during which the process stood still, because it waited for a core or was suspended, are discarded. If
too few runs remain and a single thread did the work, the processor time of that thread counts instead, which
does not include waiting. Otherwise, or if the runs differ widely, the timing is marked ``busy``: it is
unreliable, but the best available.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

T = TypeVar("T")

WARM_UP_SECONDS = 0.002
# Share of a run's time that all threads of the process may stand still. On a quiet machine, one of them runs
# at any moment, so that the processor time is at least the elapsed time.
MAX_STILL = 0.1
# Share of a run's time that its thread must run for its processor time to count: work that sleeps has none.
MIN_RUNNING = 0.1
# Samples with a wider spread, (p80 - p20) / median, say more about the machine than about the code.
MAX_SPREAD = 0.25
# Attempts at timing two sides before a busy timing is accepted.
MAX_ATTEMPTS = 3


@dataclass(frozen=True)
class Quantiles:
    """Median with the 20th and 80th percentile, in the unit of the samples."""

    median: float
    p20: float
    p80: float

    @classmethod
    def of(cls, samples: Sequence[float]) -> Quantiles:
        """Interpolate linearly between the two nearest samples. Raises ValueError without samples."""
        if not samples:
            raise ValueError("quantiles need at least one sample, got none")
        if len(samples) == 1:
            return cls(samples[0], samples[0], samples[0])
        fifths = statistics.quantiles(samples, n=5, method="inclusive")
        return cls(statistics.median(samples), fifths[0], fifths[3])

    @property
    def spread(self) -> float:
        """Width of the middle 60 % as a share of the median."""
        return (self.p80 - self.p20) / self.median if self.median else 0.0


@dataclass(frozen=True)
class Least:
    """Seconds of the fastest of several runs; ``busy`` if other programs disturbed every run."""

    seconds: float
    busy: bool


@dataclass(frozen=True)
class Paired:
    """Medians of two sides that ran in turn.

    Attributes:
        mine, other: Seconds of each side.
        speedup: Median of the rounds' ratios other / mine.
        rounds: Number of rounds.
        spread: Width of the middle 60 % as a share of the median, for the side that varies more; infinite
            without an undisturbed round.
        busy: Whether other programs disturbed the timing: too few rounds were undisturbed, or ``spread`` is
            too wide.
    """

    mine: float
    other: float
    speedup: float
    rounds: int
    spread: float = 0.0
    busy: bool = False

    @classmethod
    def of(cls, rounds: Sequence[tuple[float, float]]) -> Paired:
        """Summarise rounds of (mine, other) in seconds."""
        mine, other = (Quantiles.of(seconds) for seconds in zip(*rounds, strict=True))
        # A single round has no spread.
        spread = max(mine.spread, other.spread) if len(rounds) > 1 else math.inf
        return cls(
            mine=mine.median,
            other=other.median,
            speedup=statistics.median(other_seconds / my_seconds for my_seconds, other_seconds in rounds),
            rounds=len(rounds),
            spread=spread,
            busy=spread > MAX_SPREAD,
        )


def rounds(
    sides: Sequence[Callable[[], T]],
    unfinished: Callable[[int, float], bool],
    clock: Callable[[], float] | None = None,
) -> Iterator[tuple[T, ...]]:
    """Run every side once a round, in the same order, and yield the results of each round.

    A slow moment of the machine thus hits all sides alike.

    Args:
        sides: The functions to run.
        unfinished: Decides, before each round, whether to run it, from the number of rounds so far and the
            seconds since the first round began.
        clock: ``time.perf_counter`` by default.
    """
    clock = clock or time.perf_counter
    start, done, spent = clock(), 0, 0.0
    while unfinished(done, spent):
        yield tuple(side() for side in sides)
        done += 1
        spent = clock() - start


def least(work: Callable[[], object], *, budget: float = 0.01, min_rounds: int = 3) -> Least:
    """Time the fastest run of ``work``.

    The timing takes at least ``min_rounds`` undisturbed runs and at least ``budget`` seconds. On a busy
    machine, it stops waiting for undisturbed runs after three times as many runs.
    """
    _warm_up(work)
    runs: list[_Run] = []
    calm: list[float] = []

    def unfinished(done: int, spent: float) -> bool:
        return (len(calm) < min_rounds and done < 3 * min_rounds) or spent < budget

    for (run,) in rounds([lambda: _run(work)], unfinished):
        runs.append(run)
        if not run.still:
            calm.append(run.seconds)
    undisturbed = calm or [run.processor for run in runs if run.processor is not None]
    return Least(min(undisturbed or [run.seconds for run in runs]), busy=not undisturbed)


def paired(
    mine: Callable[[], object],
    other: Callable[[], object],
    *,
    budget: float = 0.03,
    min_rounds: int = 7,
    max_rounds: int = 101,
) -> Paired:
    """Time two sides in turn.

    The timing takes at least ``min_rounds`` undisturbed rounds, at most ``max_rounds``, and in between as
    many as fit into ``budget`` seconds. If the machine was busy, it starts again; of ``MAX_ATTEMPTS`` busy
    attempts, the one with the least spread counts.
    """
    _warm_up(mine)
    _warm_up(other)
    return steadiest(lambda: _in_turn(mine, other, budget, min_rounds, max_rounds))


def steadiest(timing: Callable[[], Paired]) -> Paired:
    """Return the first timing that is not busy; if all attempts are, the one with the least spread."""
    attempts: list[Paired] = []
    while len(attempts) < MAX_ATTEMPTS:
        attempts.append(timing())
        if not attempts[-1].busy:
            return attempts[-1]
    return min(attempts, key=lambda attempt: attempt.spread)


def _in_turn(
    mine: Callable[[], object],
    other: Callable[[], object],
    budget: float,
    min_rounds: int,
    max_rounds: int,
) -> Paired:
    every: list[tuple[float, float]] = []
    calm: list[tuple[float, float]] = []
    on_processor: list[tuple[float, float]] = []

    def unfinished(done: int, spent: float) -> bool:
        if len(calm) < min_rounds:
            return done < 2 * min_rounds
        return done < max_rounds and spent < budget

    sides = (lambda: _run(mine)), (lambda: _run(other))
    for my_run, other_run in rounds(sides, unfinished):
        every.append((my_run.seconds, other_run.seconds))
        if not (my_run.still or other_run.still):
            calm.append(every[-1])
        if my_run.processor is not None and other_run.processor is not None:
            on_processor.append((my_run.processor, other_run.processor))
    if len(calm) < min_rounds <= len(on_processor):
        return Paired.of(on_processor)
    if not calm:
        return replace(Paired.of(every), spread=math.inf, busy=True)
    timing = Paired.of(calm)
    return timing if len(calm) >= min_rounds else replace(timing, busy=True)


def _warm_up(work: Callable[[], object]) -> None:
    """Warm up caches and clocks: run short work several times, long work once."""
    start = time.perf_counter()
    work()
    while time.perf_counter() - start < WARM_UP_SECONDS:
        work()


@dataclass(frozen=True)
class _Run:
    """One run.

    Attributes:
        seconds: Elapsed time.
        still: Whether the process stood still for too much of it.
        processor: Processor time; None unless the calling thread did the work alone.
    """

    seconds: float
    still: bool
    processor: float | None


def _run(work: Callable[[], object]) -> _Run:
    thread, process, start = time.thread_time(), time.process_time(), time.perf_counter()
    work()
    seconds = time.perf_counter() - start
    process = time.process_time() - process
    thread = time.thread_time() - thread
    alone = thread >= (1 - MAX_STILL) * process and thread > MIN_RUNNING * seconds
    return _Run(seconds, seconds - process > MAX_STILL * seconds, thread if alone else None)
