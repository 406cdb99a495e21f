"""Early-Bird tickets of heads and neurons: drawn long before a dense round of training ends."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from enum import StrEnum
from fractions import Fraction
from itertools import pairwise
from pathlib import Path

from torch import Tensor

from sparsebert.bert import structure
from sparsebert.lottery.experiment import Experiment, RunConfig
from sparsebert.lottery.method import Rewind, Round, RoundHooks, SearchingMethod, Source, register
from sparsebert.mask_learning.rule import require_not_negative, require_positive
from sparsebert.pruning.gates import GateSite, gate_sites
from sparsebert.pruning.granularity import kinds_in
from sparsebert.pruning.methods.early_bird import Coefficients, Settled, mask_distance
from sparsebert.pruning.prune import kept_units, prune
from sparsebert.pruning.sparsity_schedule import exact
from sparsebert.pruning.unit_groups import HEADS_BY_LAYER
from sparsebert.tickets.ticket import Ticket
from sparsebert.training import distributed
from sparsebert.training.unit_coefficients import CoefficientTrace, TrainedCoefficients, read_trace

Course = Mapping[int, Mapping[str, Tensor]]


class DrawAt(StrEnum):
    """When the ticket is drawn: once consecutive masks differ little, or at a step known beforehand."""

    DISTANCE = "distance"
    FIXED = "fixed"


@register("early-bird")
@dataclass(frozen=True)
class EarlyBird(SearchingMethod):
    """Train the model with a coefficient on each head and neuron and an L1 penalty on them, draw the units of
    the highest coefficients early, rewind and train those: Chen et al. 2021, "EarlyBERT: Efficient BERT
    Training via Early-bird Lottery Tickets".

    For granularities head, neuron and "head+neuron". By default heads compete within their layer and neurons
    with all others, as published, and of both the asked share goes; instead of it ``heads_sparsity`` and
    ``neurons_sparsity`` name one for each (published: a third, and 0.4).
    ``draw="distance"``: every ``every`` steps the mask that the coefficients give at the asked sparsity is
    compared with the last; once the share of units that changed sides is below ``epsilon`` for ``window``
    times in a row, the ticket is drawn (You et al. 2020). ``draw="fixed"``: after ``draw_at`` of the first
    epoch, as in the code of Chen et al. 2021. ``penalty``: factor of the L1 norm. The published code ranks by
    the signed coefficient; ``absolute`` by its size. ``search_learning_rate``: of the search, where it is not
    that of the training after it (published: 2e-5, and 4e-5 after it).

    The coefficients at each comparison stay in the run's folder (``round-00/coefficients``). ``search`` of
    the ticket's metadata holds the step of the draw, the steps of a whole round, the share that was saved of
    them, whether the mask had settled, and the distances.
    """

    penalty: float = 1e-4
    draw: DrawAt = DrawAt.DISTANCE
    draw_at: float = 0.2
    every: int = 10
    epsilon: float = 0.1
    window: int = 5
    absolute: bool = False
    heads_sparsity: float | None = None
    neurons_sparsity: float | None = None
    search_learning_rate: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.rewind not in (Rewind.PRETRAINED, Rewind.LEARNING_RATE):
            raise ValueError(
                f"method {self.name} searches with an optimizer of its own: rewind must be 'pretrained' or "
                f"'learning-rate', not {self.rewind.value!r}"
            )
        Settled(self.epsilon, self.window)
        require_not_negative(self, "penalty")
        if self.search_learning_rate is not None:
            require_positive(self, "search_learning_rate")
        shares = {"heads_sparsity": self.heads_sparsity, "neurons_sparsity": self.neurons_sparsity}
        given = {name: share for name, share in shares.items() if share is not None}
        if len(given) == 1:
            raise ValueError("heads_sparsity and neurons_sparsity go together: one of them is missing")
        for name, share in given.items():
            if not 0 <= share < 1:
                raise ValueError(f"{name} must be in [0, 1), not {share}")
        if not 0 < self.draw_at <= 1:
            raise ValueError(f"draw_at must be a share of an epoch in (0, 1], not {self.draw_at}")
        if self.every < 1:
            raise ValueError(f"every must be at least 1 step, not {self.every}")

    @property
    def decides_sparsity(self) -> bool:
        """With shares of their own for heads and neurons, no other is asked for."""
        return self.heads_sparsity is not None

    @property
    def granularity(self) -> str:
        return "head+neuron"

    @property
    def scope(self) -> str:
        return HEADS_BY_LAYER

    def require_units(self, granularity: str, scope: str) -> None:
        if self.decides_sparsity and (granularity != "head+neuron" or scope == "global"):
            raise ValueError(
                "heads_sparsity and neurons_sparsity are for granularity 'head+neuron' and a scope that "
                f"keeps the two apart, such as 'type', not {granularity!r} and {scope!r}"
            )
        if not kinds_in(granularity) or "mlp" in kinds_in(granularity):
            raise ValueError(
                f"method {self.name} chooses among heads and neurons: granularity head, neuron or "
                f"head+neuron, not {granularity!r}"
            )

    def rounds(self, sparsity: Fraction) -> tuple[Round, ...]:
        search = Round(Source.DENSE, learning_rate=self.search_learning_rate)
        return (search, Round(Source.SEARCH, sparsity))

    def require(self, experiment: Experiment, request: RunConfig) -> None:
        """Raise ValueError for a round with too few steps for a mask, and shares that would keep nothing."""
        every = self._interval(experiment, request)
        if every > (steps := _steps(experiment, request)):
            raise ValueError(f"a round of {steps} steps ends before the first mask, at step {every}")
        if self.decides_sparsity:
            prune(experiment.model, "random", sparsity=self.sought(request), **asdict(request.units))

    def sought(self, request: RunConfig) -> Fraction | dict[str, Fraction]:
        """The sparsity of the ticket to draw, or that of heads and that of neurons."""
        if self.heads_sparsity is None or self.neurons_sparsity is None:
            return request.target
        return {
            "head": exact("heads_sparsity", self.heads_sparsity),
            "neuron": exact("neurons_sparsity", self.neurons_sparsity),
        }

    @contextlib.contextmanager
    def round_hooks(
        self, number: int, experiment: Experiment, request: RunConfig, folder: Path
    ) -> Iterator[RoundHooks | None]:
        """The first round trains the coefficients too, and ends with the draw; then they join the weights."""
        if number > 0:
            yield None
            return
        every = self._interval(experiment, request)
        sites = _sites(experiment, request)
        coefficients = TrainedCoefficients(experiment.model, sites, self.penalty)
        watch = _Watch(self, experiment, request)
        trace = CoefficientTrace(coefficients, folder / "coefficients", every, watch.enough)
        try:
            yield _Searching(trace, coefficients)
        finally:
            coefficients.fold_()

    def found(self, experiment: Experiment, request: RunConfig, folder: Path, round_: Round) -> Ticket:
        model = experiment.model
        sizes = {name: site.count(model) for name, site in _sites(experiment, request).items()}
        course = read_trace(folder / "coefficients", sizes)
        watch = _Watch(self, experiment, request)
        drawn_at, steps = max(course), _steps(experiment, request)
        ticket = prune(
            model,
            Coefficients(course[drawn_at], self.absolute),
            sparsity=self.sought(request),
            seed=request.training.seed,
            **asdict(request.units),
        )
        ticket.metadata["search"] = {
            "drawn_at": drawn_at,
            "steps": steps,
            "saved": 1 - drawn_at / steps,
            "settled": watch.enough(course),
            "distances": [[step, distance] for step, distance in watch.distances(course).items()],
        }
        return ticket

    def _interval(self, experiment: Experiment, request: RunConfig) -> int:
        if self.draw is DrawAt.DISTANCE:
            return self.every
        epoch = replace(request.training, steps=None, epochs=1.0, warmup_steps=0)
        return max(1, round(self.draw_at * epoch.steps_of(len(experiment.train), distributed.count())))


@dataclass(frozen=True)
class _Searching:
    """What goes along with the first round."""

    callback: CoefficientTrace
    coefficients: TrainedCoefficients
    examples: None = None

    @property
    def names(self) -> Sequence[str]:
        return self.coefficients.names

    @property
    def stopped(self) -> int | None:
        return self.callback.stopped

    def penalty(self) -> Tensor:
        return self.coefficients.penalty()


class _Watch:
    """Masks of the coefficients at each step, and whether they have settled."""

    def __init__(self, method: EarlyBird, experiment: Experiment, request: RunConfig) -> None:
        self._method, self._model, self._request = method, experiment.model, request
        self._masks: dict[int, dict[str, Tensor]] = {}

    def distances(self, course: Course) -> dict[int, float]:
        """Step -> distance of its mask from the one before."""
        for step, values in course.items():
            if step not in self._masks:
                units = self._request.units
                self._masks[step] = kept_units(
                    self._model,
                    {name: each.abs() if self._method.absolute else each for name, each in values.items()},
                    self._method.sought(self._request),
                    units.granularity,
                    units.scope,
                )
        return {
            later: mask_distance(self._masks[earlier], self._masks[later])
            for earlier, later in pairwise(course)
        }

    def enough(self, course: Course) -> bool:
        """Whether the ticket is to be drawn now."""
        if self._method.draw is DrawAt.FIXED:
            return bool(course)
        settled = Settled(self._method.epsilon, self._method.window)
        return settled(list(self.distances(course).values()))


def _sites(experiment: Experiment, request: RunConfig) -> dict[str, GateSite]:
    known = structure(experiment.model)
    sites: dict[str, GateSite] = {}
    for kind in kinds_in(request.units.granularity):
        sites |= gate_sites(known, kind)
    return sites


def _steps(experiment: Experiment, request: RunConfig) -> int:
    return request.training.steps_of(len(experiment.train), distributed.count())
