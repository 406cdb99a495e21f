"""What a model keeps for a speed: predicted by a cost model, corrected by timing random tickets."""

from __future__ import annotations

import copy
import math
import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple, TypeVar

import torch

from sparsebert.bench.providers import BuiltBackend
from sparsebert.bench.runner import Settings, time_backends
from sparsebert.bench.timer import on_wall
from sparsebert.cost import gpu_roofline
from sparsebert.one_shot.time_budget import LOWEST
from sparsebert.pruning import prune
from sparsebert.sparsify import sparsify_
from sparsebert.tickets.ticket import Ticket
from sparsebert.workflows.speed_programmes import Limit, Programme, Proposal

Batch = dict[str, torch.Tensor]
T = TypeVar("T")

MOST_SPARSITY = 1 - LOWEST
# Corrections by another timing, and the distance from the target that needs none.
CORRECTIONS, CLOSE = 4, 0.02
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
        device: A GPU, as for :func:`sparsebert.plan`, whose modelled times are meant: those of the linear
            layers alone, in bf16 if the tolerance allows it. None for this machine's CPU.

    Raises:
        ValueError: Neither or both speeds are given, or one is not a positive number; or the device is
            unknown.
    """

    speedup: float | None = None
    milliseconds: float | None = None
    tolerance: str = "fp32"
    batch: int = 8
    threads: int = 1
    device: str | None = None

    def __post_init__(self) -> None:
        """Check the speeds."""
        given = {"speedup": self.speedup, "milliseconds": self.milliseconds}
        speeds = {name: value for name, value in given.items() if value is not None}
        if len(speeds) != 1:
            raise ValueError("exactly one of speedup and milliseconds must be given")
        for name, value in speeds.items():
            if not 0 < value < math.inf:
                raise ValueError(f"{name} must be a positive number, got {value!r}")
        if self.device is not None:
            gpu_roofline.named(self.device)

    def __str__(self) -> str:
        """Return the speed in words."""
        return f"{self.milliseconds:g} ms" if self.speedup is None else f"{self.speedup:g}x"

    def limit(self, dense: float) -> float:
        """Return the milliseconds to reach, from those of the dense model."""
        return dense / self.speedup if self.speedup is not None else float(self.milliseconds or 0)

    def excess(self, milliseconds: float, dense: float) -> float:
        """Return a time, and that of the dense model beside it, relative to the time to reach."""
        return milliseconds / self.limit(dense)

    def slices(self, texts: Sequence[T], seed: int = 0) -> list[Sequence[T]]:
        """Return the texts of each batch to time, drawn as they come."""
        drawn = random.Random(seed).sample(texts, min(len(texts), self.batch * MOST_BATCHES))
        starts = range(0, max(len(drawn) - self.batch + 1, 1), self.batch)
        return [drawn[at : at + self.batch] for at in starts]


@dataclass(frozen=True)
class SpeedTarget:
    """What a model keeps for a speed, and the speed that this promises.

    Attributes:
        sparsity: Share of zeros.
        milliseconds: Mean time of a batch with a random ticket of this kind; modelled for a GPU.
        dense_milliseconds: That of the fastest dense form in the same precision.
        dense_form: The form: as torch runs it, or fused; or the GPU.
        modelled_milliseconds: The time by the cost model alone, before it was corrected by timings.
        densities: Share of weights to keep by key; empty for one sparsity of all matrices.
        granularities: Granularity by key; empty where all have the same.
    """

    sparsity: float
    milliseconds: float
    dense_milliseconds: float
    dense_form: str
    modelled_milliseconds: float | None = None
    densities: dict[str, float] = field(default_factory=dict)
    granularities: dict[str, str] = field(default_factory=dict)

    @property
    def speedup(self) -> float:
        """Dense time / sparse time."""
        return self.dense_milliseconds / self.milliseconds

    @property
    def composition(self) -> str:
        """The number of matrices that stay dense, and of those of each granularity, as text; or ""."""
        kinds = Counter(
            "dense" if density == 1 else self.granularities.get(key, "pruned")
            for key, density in self.densities.items()
        )
        return ", ".join(f"{count} {kind}" for kind, count in sorted(kinds.items()))


class _Probe(NamedTuple):
    """A proposal that was timed: its time relative to that of the goal is ``excess``."""

    proposal: Proposal
    target: SpeedTarget
    excess: float

    @property
    def distance(self) -> float:
        """Distance of the time from the goal."""
        return abs(self.excess - 1)


def target_for(
    base: Any,
    programme: Programme,
    batches: Sequence[Batch],
    goal: SpeedGoal,
    *,
    settings: Settings = EFFORT,
    on_step: Callable[[str], None] = lambda step: None,
) -> SpeedTarget:
    """Find what a model keeps for a speed: as the cost model predicts, corrected by timings.

    A random ticket of each proposal is timed against the dense model, until one is within ``CLOSE`` of the
    goal. For a GPU nothing is timed.

    Args:
        base: Dense model without a head, in eval mode.
        programme: Chooses what to keep within a predicted time.
        batches: Batches to time.
        goal: The speed.
        settings: Effort of each timing.
        on_step: Called with a description of each step.

    Raises:
        ValueError: Nothing that the programme may choose reaches the speed.
    """
    on_step("predicting times")
    if goal.device is not None:
        return _modelled(programme, goal)
    probes: list[_Probe] = []
    for _ in range(1 + CORRECTIONS):
        dense = probes[-1].target.dense_milliseconds if probes else programme.dense
        proposal = programme.within(partial(_limit, probes, goal.limit(dense) * programme.dense / dense))
        if any(proposal.milliseconds == probe.proposal.milliseconds for probe in probes):
            break
        on_step(f"timing {proposal}")
        times = time_against_dense(base, proposal.ticket, batches, goal, settings)
        kept = dict(proposal.densities), dict(proposal.granularities)
        target = SpeedTarget(proposal.ticket.sparsity, *times, proposal.milliseconds, *kept)
        probes.append(_Probe(proposal, target, goal.excess(target.milliseconds, target.dense_milliseconds)))
        if probes[-1].distance <= CLOSE or (proposal.ticket.sparsity == 0 and probes[-1].excess < 1):
            return target
    reached = [probe for probe in probes if probe.excess <= 1 + CLOSE]
    if reached:
        return min(reached, key=lambda probe: probe.proposal.loss).target
    fastest = min(probes, key=lambda probe: probe.excess)
    if fastest.excess > 1 + 5 * CLOSE:
        raise _unreachable(goal, fastest.target, "here", "takes")
    return fastest.target


def _modelled(programme: Programme, goal: SpeedGoal) -> SpeedTarget:
    """Return what the cost model of a GPU chooses. Raises ValueError if the speed is out of reach."""
    limit = goal.limit(programme.dense)
    proposal = programme.within(lambda way: Limit(limit))
    target = SpeedTarget(
        proposal.ticket.sparsity,
        proposal.milliseconds,
        programme.dense,
        f"dense on {gpu_roofline.named(str(goal.device)).name}",
        proposal.milliseconds,
        dict(proposal.densities),
        dict(proposal.granularities),
    )
    if not proposal.reached:
        raise _unreachable(goal, target, f"on {goal.device}", "is predicted to take")
    return target


def _unreachable(goal: SpeedGoal, best: SpeedTarget, where: str, verb: str) -> ValueError:
    return ValueError(
        f"no sparsity up to {MOST_SPARSITY:.0%} reaches {goal} {where}: {best.sparsity:.0%}, the fastest, "
        f"{verb} {best.milliseconds:.3g} ms, {best.speedup:.2f}x of the dense model; allow a lower "
        "precision, or ask for less"
    )


def _limit(probes: Sequence[_Probe], goal: float, way: str) -> Limit:
    """Return the limit of a way of running the encoder, in predicted milliseconds, by earlier timings.

    Dense matrices are taken to be as fast as predicted: in the unit of the prediction, a proposal took
    ``excess`` times ``goal``, and what is not dense in that is the time of its pruned matrices. Two timings
    of a way tell that time as a straight line over its prediction; one tells a factor, and the last of
    another way is the guess for a way that was not timed.
    """
    if not probes:
        return Limit(goal)
    here = sorted((probe for probe in probes if probe.proposal.way == way), key=lambda each: each.distance)
    nearest = here[0] if here else probes[-1]
    predicted = nearest.proposal.pruned
    took = nearest.excess * goal - nearest.proposal.rest
    if predicted <= 0 or took <= 0:  # nothing is pruned, or all else took longer than predicted
        return Limit(goal / nearest.excess)
    factor = took / predicted
    change = predicted - here[1].proposal.pruned if len(here) > 1 else 0.0
    if change:
        slope = (took - (here[1].excess * goal - here[1].proposal.rest)) / change
        # Timings of nearly equal proposals tell little of the slope.
        slope = min(max(slope, factor / 2), 2 * factor)
        return Limit(goal - (took - slope * predicted), slope)
    return Limit(goal, factor)


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
