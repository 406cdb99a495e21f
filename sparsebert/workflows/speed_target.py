"""The sparsity that reaches a speed on this machine, found by timing random tickets of the same shape."""

from __future__ import annotations

import copy
import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch

from sparsebert.bench.providers import BuiltBackend
from sparsebert.bench.runner import Settings, time_backends
from sparsebert.bench.timer import on_wall
from sparsebert.pruning import prune
from sparsebert.sparsify import sparsify_
from sparsebert.tickets.ticket import Ticket

Batch = dict[str, torch.Tensor]
T = TypeVar("T")

# Sparsities that are timed first; time is close to a straight line over the density between them.
PROBES = (0.5, 0.8, 0.95)
MOST_SPARSITY = 0.99
# Corrections by another timing, and the distance from the target that needs none.
CORRECTIONS, CLOSE = 3, 0.02
# Batches that are timed.
MOST_BATCHES = 4
EFFORT = Settings(budget=2.0, memory=False)
DENSE, FUSED = "dense", "dense, fused"


@dataclass(frozen=True)
class SpeedGoal:
    """A speed to reach.

    Attributes:
        speedup: Time of the fastest dense form / time of the pruned model; or
        milliseconds: Mean time of a batch.
        tolerance: As for :func:`sparsebert.sparsify_`.
        batch: Texts per batch.
        threads: CPU threads.

    Raises:
        ValueError: Neither or both speeds are given, or one is not a positive number.
    """

    speedup: float | None = None
    milliseconds: float | None = None
    tolerance: str = "fp32"
    batch: int = 8
    threads: int = 1

    def __post_init__(self) -> None:
        """Check the speeds."""
        given = {"speedup": self.speedup, "milliseconds": self.milliseconds}
        speeds = {name: value for name, value in given.items() if value is not None}
        if len(speeds) != 1:
            raise ValueError("exactly one of speedup and milliseconds must be given")
        for name, value in speeds.items():
            if not 0 < value < math.inf:
                raise ValueError(f"{name} must be a positive number, got {value!r}")

    def __str__(self) -> str:
        """Return the speed in words."""
        return f"{self.milliseconds:g} ms" if self.speedup is None else f"{self.speedup:g}x"

    def limit(self, dense: float) -> float:
        """Return the milliseconds to reach, from those of the dense model."""
        return dense / self.speedup if self.speedup is not None else float(self.milliseconds or 0)

    def slices(self, texts: Sequence[T], seed: int = 0) -> list[Sequence[T]]:
        """Return the texts of each batch to time, drawn as they come."""
        drawn = random.Random(seed).sample(texts, min(len(texts), self.batch * MOST_BATCHES))
        starts = range(0, max(len(drawn) - self.batch + 1, 1), self.batch)
        return [drawn[at : at + self.batch] for at in starts]


@dataclass(frozen=True)
class SpeedTarget:
    """A sparsity and the speed that it promises.

    Attributes:
        sparsity: Share of zeros.
        milliseconds: Mean time of a batch with a random ticket of this sparsity.
        dense_milliseconds: That of the fastest dense form in the same precision.
        dense_form: The form: as torch runs it, or fused.
    """

    sparsity: float
    milliseconds: float
    dense_milliseconds: float
    dense_form: str

    @property
    def speedup(self) -> float:
        """Dense time / sparse time."""
        return self.dense_milliseconds / self.milliseconds


def sparsity_for(
    base: Any,
    batches: Sequence[Batch],
    goal: SpeedGoal,
    *,
    granularity: str = "element",
    settings: Settings = EFFORT,
    on_step: Callable[[str], None] = lambda step: None,
) -> SpeedTarget:
    """Find the lowest sparsity that reaches a speed.

    Args:
        base: Dense model without a head, in eval mode.
        batches: Batches to time.
        goal: The speed.
        granularity: As for :func:`sparsebert.prune`.
        settings: Effort of each timing.
        on_step: Called with a description of each step.

    Raises:
        ValueError: No sparsity up to ``MOST_SPARSITY`` reaches the speed.
    """
    points: dict[float, SpeedTarget] = {}

    def probe(sparsity: float) -> SpeedTarget:
        if sparsity not in points:
            on_step(f"timing {granularity} at {sparsity:.0%}")
            ticket = prune(base, "random", sparsity=sparsity, granularity=granularity, scope="matrix")
            times = time_against_dense(base, ticket, batches, goal, settings)
            points[sparsity] = SpeedTarget(sparsity, *times)
        return points[sparsity]

    def limit() -> float:
        return goal.limit(min(point.dense_milliseconds for point in points.values()))

    for sparsity in PROBES:
        probe(sparsity)
    for _ in range(CORRECTIONS):
        last = probe(_at(limit(), {each: point.milliseconds for each, point in points.items()}))
        if abs(last.milliseconds / limit() - 1) <= CLOSE:
            break
    if last.milliseconds > limit() * (1 + 5 * CLOSE):
        raise ValueError(
            f"no sparsity up to {MOST_SPARSITY:.0%} reaches {goal} here: {last.sparsity:.0%} takes "
            f"{last.milliseconds:.3g} ms, {last.speedup:.2f}x of the dense model; allow a lower precision, "
            "or ask for less"
        )
    return last


def time_against_dense(
    base: Any, ticket: Ticket, batches: Sequence[Batch], goal: SpeedGoal, settings: Settings = EFFORT
) -> tuple[float, float, str]:
    """Time a ticket in turn with the dense model, as torch runs it and fused.

    Returns:
        Mean milliseconds of a batch with the ticket, those of the faster dense form, and the form.
    """
    torch.set_num_threads(goal.threads)
    sparse, fused = copy.deepcopy(base), copy.deepcopy(base)
    tokens = int(sum(batch["attention_mask"].sum() for batch in batches) / len(batches))
    sparsify_(sparse, ticket, tokens=tokens, tolerance=goal.tolerance)
    sparsify_(fused, prune(base, sparsity=0.0), tokens=tokens, tolerance=goal.tolerance)
    models = {DENSE: base, FUSED: fused, "sparse": sparse}
    timings = time_backends(
        {
            name: BuiltBackend(run=on_wall(_forward(model, batches)), answers=list)
            for name, model in models.items()
        },
        settings,
        threads=goal.threads,
    )
    each = {name: 1e3 * timings.latency(name).median / len(batches) for name in models}
    form = min((DENSE, FUSED), key=each.__getitem__)
    return each["sparse"], each[form], form


def _forward(model: Any, batches: Sequence[Batch]) -> Callable[[], None]:
    @torch.inference_mode()
    def forward() -> None:
        for batch in batches:
            model(**batch)

    return forward


def _at(milliseconds: float, points: dict[float, float]) -> float:
    """Return the sparsity whose time, interpolated between points of (sparsity, time), is ``milliseconds``.

    Beyond the points the line through the two nearest goes on, from sparsity 0 to ``MOST_SPARSITY``.
    """
    order = sorted(points)
    above = [sparsity for sparsity in order if points[sparsity] > milliseconds]
    low = above[-1] if above else order[0]
    following = order[order.index(low) + 1 :]
    low, high = (low, following[0]) if following else (order[-2], order[-1])
    change = points[high] - points[low]
    if change >= 0:
        return 0.0 if milliseconds > points[low] else MOST_SPARSITY
    sparsity = low + (milliseconds - points[low]) * (high - low) / change
    return round(min(max(sparsity, 0.0), MOST_SPARSITY), 4)
