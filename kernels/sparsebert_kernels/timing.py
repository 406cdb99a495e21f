"""Short timings on the machine at hand: the least of a few runs, and two sides in turn.

A run that the process did not get through without standing still, because it waited for a core or was
suspended, says nothing and is left out. Where too few others are left, or they differ widely, a timing is
`busy`: the best there is, and not to be relied on.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

WARM_UP_SECONDS = 0.002
# Share of a run's time that all threads of the process may stand still: on a quiet machine one of them is
# running at any moment, so that the processor time is at least the time that passes.
MAX_STILL = 0.1
# Wider than this, (p80 - p20) / median, samples say more about the machine than about the code.
MAX_SPREAD = 0.25
# How often two sides are timed anew until a timing is not busy.
MAX_ATTEMPTS = 3


@dataclass(frozen=True)
class Least:
    """Seconds of the fastest of several runs; ``busy``: the process stood still during every one of them."""

    seconds: float
    busy: bool


@dataclass(frozen=True)
class Paired:
    """Medians of two sides that ran in turn: seconds of each, and of the per-round ratio other / mine.

    rounds  that these are medians of
    spread  of the seconds of the side that varies more: width of the middle 60 %, as a share of the median;
            infinite where no round was undisturbed
    busy    something else had the machine: there were too few undisturbed rounds, or ``spread`` is too wide
    """

    mine: float
    other: float
    speedup: float
    rounds: int
    spread: float = 0.0
    busy: bool = False

    @classmethod
    def of(cls, rounds: Sequence[tuple[float, float]]) -> Paired:
        """Of the seconds (mine, other) of each round."""
        own, others = ([seconds[side] for seconds in rounds] for side in (0, 1))
        spread = max(_spread(own), _spread(others))
        return cls(
            mine=statistics.median(own),
            other=statistics.median(others),
            speedup=statistics.median(theirs / ours for ours, theirs in rounds),
            rounds=len(rounds),
            spread=spread,
            busy=spread > MAX_SPREAD,
        )


def least(work: Callable[[], object], *, budget: float = 0.01, min_rounds: int = 3) -> Least:
    """At least ``min_rounds`` runs without standing still, more while ``budget`` seconds last; at most three
    times as many in all where the machine is busy."""
    _warm_up(work)
    runs: list[float] = []
    calm: list[float] = []
    start = time.perf_counter()
    while (len(calm) < min_rounds and len(runs) < 3 * min_rounds) or time.perf_counter() - start < budget:
        seconds, still = _run(work)
        runs.append(seconds)
        if not still:
            calm.append(seconds)
    return Least(min(calm or runs), busy=not calm)


def paired(
    mine: Callable[[], object],
    other: Callable[[], object],
    *,
    budget: float = 0.03,
    min_rounds: int = 7,
    max_rounds: int = 101,
) -> Paired:
    """Run both sides once a round, so that a slow moment of the machine hits both.

    At least ``min_rounds`` undisturbed rounds, at most ``max_rounds``, and between the two until ``budget``
    seconds are spent. All over again where the machine was busy: of `MAX_ATTEMPTS` the steadiest counts.
    """
    _warm_up(mine)
    _warm_up(other)
    return steadiest(lambda: _in_turn(mine, other, budget, min_rounds, max_rounds))


def steadiest(timing: Callable[[], Paired]) -> Paired:
    """The first of several timings that is not busy; if all are, the one that spreads least."""
    found: list[Paired] = []
    while len(found) < MAX_ATTEMPTS:
        found.append(timing())
        if not found[-1].busy:
            return found[-1]
    return min(found, key=lambda each: each.spread)


def _in_turn(
    mine: Callable[[], object],
    other: Callable[[], object],
    budget: float,
    min_rounds: int,
    max_rounds: int,
) -> Paired:
    rounds: list[tuple[float, float]] = []
    calm: list[tuple[float, float]] = []
    start = time.perf_counter()

    def unfinished() -> bool:
        if len(calm) < min_rounds:
            return len(rounds) < 2 * min_rounds
        return len(rounds) < max_rounds and time.perf_counter() - start < budget

    while unfinished():
        (own, stood), (theirs, stood_too) = _run(mine), _run(other)
        rounds.append((own, theirs))
        if not (stood or stood_too):
            calm.append((own, theirs))
    if not calm:
        return replace(Paired.of(rounds), spread=math.inf, busy=True)
    found = Paired.of(calm)
    return found if len(calm) >= min_rounds else replace(found, busy=True)


def _warm_up(work: Callable[[], object]) -> None:
    """Caches and clocks: a few runs of something short, one of something long."""
    start = time.perf_counter()
    work()
    while time.perf_counter() - start < WARM_UP_SECONDS:
        work()


def _run(work: Callable[[], object]) -> tuple[float, bool]:
    """Seconds of a run, and whether the process stood still for too much of them."""
    processor, start = time.process_time(), time.perf_counter()
    work()
    seconds = time.perf_counter() - start
    return seconds, seconds - (time.process_time() - processor) > MAX_STILL * seconds


def _spread(samples: Sequence[float]) -> float:
    if len(samples) < 2:
        return math.inf
    fifths = statistics.quantiles(samples, n=5, method="inclusive")
    return (fifths[3] - fifths[0]) / statistics.median(samples)
