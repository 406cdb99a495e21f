"""Short timings on the machine at hand: the least of a few runs, and two sides in turn."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

WARM_UP_SECONDS = 0.002


@dataclass(frozen=True)
class Paired:
    """Medians of two sides that ran in turn: seconds of each, and of the per-round ratio other / mine."""

    mine: float
    other: float
    speedup: float
    rounds: int


def least(work: Callable[[], object], *, budget: float = 0.01, min_rounds: int = 3) -> float:
    """Seconds of the fastest of several runs: at least ``min_rounds``, more while ``budget`` seconds last."""
    _warm_up(work)
    best, rounds, start = float("inf"), 0, time.perf_counter()
    while rounds < min_rounds or time.perf_counter() - start < budget:
        best = min(best, _seconds(work))
        rounds += 1
    return best


def paired(
    mine: Callable[[], object],
    other: Callable[[], object],
    *,
    budget: float = 0.03,
    min_rounds: int = 7,
    max_rounds: int = 101,
) -> Paired:
    """Run both sides once a round, so that a slow moment of the machine hits both.

    At least ``min_rounds``, at most ``max_rounds``, and between the two until ``budget`` seconds are spent.
    """
    _warm_up(mine)
    _warm_up(other)
    own: list[float] = []
    others: list[float] = []
    start = time.perf_counter()
    while len(own) < min_rounds or (len(own) < max_rounds and time.perf_counter() - start < budget):
        own.append(_seconds(mine))
        others.append(_seconds(other))
    ratios = [theirs / ours for ours, theirs in zip(own, others, strict=True)]
    return Paired(
        mine=statistics.median(own),
        other=statistics.median(others),
        speedup=statistics.median(ratios),
        rounds=len(own),
    )


def _warm_up(work: Callable[[], object]) -> None:
    """Caches and clocks: a few runs of something short, one of something long."""
    start = time.perf_counter()
    work()
    while time.perf_counter() - start < WARM_UP_SECONDS:
        work()


def _seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start
