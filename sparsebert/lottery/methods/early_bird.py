"""Early-Bird tickets of heads and neurons, drawn early in a dense round of training."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from fractions import Fraction
from itertools import pairwise
from pathlib import Path

from torch import Tensor

from sparsebert.bert import structure
from sparsebert.lottery.experiment import Experiment, RunConfig
from sparsebert.lottery.method import (
    Rewind,
    Round,
    SearchingMethod,
    Source,
    register,
    require_at_least_one,
)
from sparsebert.lottery.round_hooks import RoundHooks
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

# Step -> coefficients by gate site.
History = Mapping[int, Mapping[str, Tensor]]


class DrawAt(StrEnum):
    """The criterion for drawing the ticket: consecutive masks differ little, or a fixed step is reached."""

    DISTANCE = "distance"
    FIXED = "fixed"


@register("early-bird")
@dataclass(frozen=True)
class EarlyBird(SearchingMethod):
    """Early-Bird tickets (Chen et al. 2021, "EarlyBERT: Efficient BERT Training via Early-bird Lottery
    Tickets").

    The first round trains the model with a coefficient on each head and neuron, under an L1 penalty. The
    ticket keeps the units with the highest coefficients. It is drawn early; then the model is rewound and the
    ticket trained. Granularity is head, neuron or "head+neuron". By default heads compete within their layer
    and neurons globally, as published, and the same share of both is pruned.

    The folder ``round-00/coefficients`` of the run holds the coefficients at each comparison. ``search`` in
    the ticket's metadata and in the round's record holds the step of the draw, the steps of a whole round and
    of an epoch, the share of these steps that was saved, whether the mask had settled, epsilon and window,
    and the distances.

    Attributes:
        penalty: Weight of the L1 norm.
        draw: "distance" derives a mask from the coefficients every ``every`` steps, and draws once ``window``
            consecutive mask distances are below ``epsilon`` (You et al. 2020). A mask distance is the share
            of units in which a mask differs from the previous one. "fixed" draws after ``draw_at`` of the
            first epoch (the code of Chen et al.).
        draw_at: Share of the first epoch to train before a fixed draw.
        every: Steps between two masks.
        epsilon: Upper bound of a small mask distance.
        window: Number of consecutive small mask distances.
        absolute: Rank by the absolute value of the coefficients instead of their signed value (published).
        heads_sparsity: Share of the heads to prune, instead of the run's sparsity (published: a third).
        neurons_sparsity: Share of the neurons to prune, with ``heads_sparsity`` (published: 0.4).
        search_learning_rate: Learning rate of the first round; None for the run's (published: 2e-5, then
            4e-5).
    """

    penalty: float = field(default=1e-4, metadata={"help": "factor of the L1 penalty on the coefficients"})
    draw: DrawAt = field(
        default=DrawAt.DISTANCE,
        metadata={
            "help": "criterion for drawing the ticket: distance (consecutive masks differ little) or fixed "
            "(at --draw-at, as published)",
            "flag": "--draw-by",
        },
    )
    draw_at: float = field(
        default=0.2,
        metadata={"help": "with --draw-by fixed: share of the first epoch to train before the draw"},
    )
    every: int = field(
        default=10,
        metadata={"help": "with --draw-by distance: steps between two masks", "flag": "--mask-interval"},
    )
    epsilon: float = field(
        default=0.1,
        metadata={"help": "with --draw-by distance: distance below which two masks count as equal"},
    )
    window: int = field(
        default=5,
        metadata={"help": "with --draw-by distance: number of consecutive small distances to wait for"},
    )
    absolute: bool = field(default=False, metadata={"help": "rank the coefficients by absolute value"})
    heads_sparsity: float | None = field(
        default=None, metadata={"help": "share of the heads to prune, instead of --sparsity; published: 1/3"}
    )
    neurons_sparsity: float | None = field(
        default=None,
        metadata={"help": "share of the neurons to prune, with --heads-sparsity; published: 0.4"},
    )
    search_learning_rate: float | None = field(
        default=None,
        metadata={"help": "learning rate of the search; --learning-rate if omitted; published: 2e-5"},
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.rewind not in (Rewind.PRETRAINED, Rewind.LEARNING_RATE):
            raise ValueError(
                f"method {self.name} searches with a separate optimizer: rewind must be 'pretrained' or "
                f"'learning-rate', got {self.rewind.value!r}"
            )
        Settled(self.epsilon, self.window)  # checks the two
        require_not_negative(self, "penalty")
        if self.search_learning_rate is not None:
            require_positive(self, "search_learning_rate")
        self._check_shares()
        if not 0 < self.draw_at <= 1:
            raise ValueError(f"draw_at must be a share of an epoch in (0, 1], got {self.draw_at}")
        require_at_least_one(self, "every")

    def _check_shares(self) -> None:
        shares = {"heads_sparsity": self.heads_sparsity, "neurons_sparsity": self.neurons_sparsity}
        named = {name: share for name, share in shares.items() if share is not None}
        if len(named) == 1:
            (missing,) = shares.keys() - named.keys()
            raise ValueError(f"heads_sparsity and neurons_sparsity go together: {missing} is missing")
        for name, share in named.items():
            if not 0 <= share < 1:
                raise ValueError(f"{name} must be in [0, 1), got {share}")

    @property
    def decides_sparsity(self) -> bool:
        """Whether heads and neurons have separate sparsities, which replace the run's sparsity."""
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
                "heads_sparsity and neurons_sparsity need granularity 'head+neuron' and a scope that keeps "
                f"heads and neurons apart, such as 'type': got {granularity!r} and {scope!r}"
            )
        if not kinds_in(granularity) or "mlp" in kinds_in(granularity):
            raise ValueError(
                f"granularity of method {self.name} must be head, neuron or head+neuron, got {granularity!r}"
            )

    def rounds(self, sparsity: Fraction) -> tuple[Round, ...]:
        search = Round(Source.DENSE, learning_rate=self.search_learning_rate)
        return (search, Round(Source.SEARCH, sparsity))

    def require(self, experiment: Experiment, config: RunConfig) -> None:
        """Raise ValueError if a round ends before the first mask, or if the sparsities keep no units."""
        every = self._interval(experiment, config)
        if every > (steps := _steps(experiment, config)):
            raise ValueError(
                f"a round of {steps} steps ends before the first mask, at step {every}: "
                "train longer or compare more often"
            )
        if self.decides_sparsity:
            prune(experiment.model, "random", sparsity=self.sparsities(config), **asdict(config.units))

    def sparsities(self, config: RunConfig) -> Fraction | dict[str, Fraction]:
        """Return the sparsity of the ticket to draw, or separate sparsities of heads and of neurons."""
        if self.heads_sparsity is None or self.neurons_sparsity is None:
            return config.target
        return {
            "head": exact("heads_sparsity", self.heads_sparsity),
            "neuron": exact("neurons_sparsity", self.neurons_sparsity),
        }

    @contextlib.contextmanager
    def round_hooks(
        self, number: int, experiment: Experiment, config: RunConfig, folder: Path
    ) -> Iterator[RoundHooks | None]:
        """Train coefficients in the first round until the draw, then fold them into the weights."""
        if number > 0:
            yield None
            return
        every = self._interval(experiment, config)
        sites = _sites(experiment, config)
        coefficients = TrainedCoefficients(experiment.model, sites, self.penalty)
        criterion = _DrawCriterion(self, experiment, config)
        trace = CoefficientTrace(coefficients, folder / "coefficients", every, criterion.met)
        try:
            yield _SearchHooks(trace, coefficients)
        finally:
            coefficients.fold_()

    def find_ticket(self, experiment: Experiment, config: RunConfig, folder: Path, round_: Round) -> Ticket:
        """Draw the ticket from the coefficients of the first round."""
        model = experiment.model
        sizes = {name: site.count(model) for name, site in _sites(experiment, config).items()}
        history = read_trace(folder / "coefficients", sizes)
        criterion = _DrawCriterion(self, experiment, config)
        drawn_at, steps = max(history), _steps(experiment, config)
        ticket = prune(
            model,
            Coefficients(history[drawn_at], self.absolute),
            sparsity=self.sparsities(config),
            seed=config.training.seed,
            **asdict(config.units),
        )
        ticket.metadata["search"] = {
            "drawn_at": drawn_at,
            "steps": steps,
            "steps_per_epoch": _steps_per_epoch(experiment, config),
            "saved": 1 - drawn_at / steps,
            "settled": criterion.met(history),
            **criterion.thresholds,
            "distances": [[step, distance] for step, distance in criterion.distances(history).items()],
        }
        return ticket

    def _interval(self, experiment: Experiment, config: RunConfig) -> int:
        """Return the steps between two masks, or the step of a fixed draw."""
        if self.draw is DrawAt.DISTANCE:
            return self.every
        return max(1, round(self.draw_at * _steps_per_epoch(experiment, config)))


@dataclass(frozen=True)
class _SearchHooks:
    """Hooks of the first round."""

    callback: CoefficientTrace
    coefficients: TrainedCoefficients
    tell_examples: None = None

    @property
    def names(self) -> Sequence[str]:
        return self.coefficients.names

    @property
    def stopped(self) -> int | None:
        return self.callback.stopped

    def penalty(self) -> Tensor:
        return self.coefficients.penalty()


class _DrawCriterion:
    """Decides when to draw the ticket, from the masks of the coefficients at each step."""

    def __init__(self, method: EarlyBird, experiment: Experiment, config: RunConfig) -> None:
        self._method, self._model, self._config = method, experiment.model, config
        self._masks: dict[int, dict[str, Tensor]] = {}

    @property
    def thresholds(self) -> dict[str, float]:
        """The bound and the number of small distances that decide; empty for a fixed draw."""
        if self._method.draw is DrawAt.FIXED:
            return {}
        return {"epsilon": self._method.epsilon, "window": self._method.window}

    def distances(self, history: History) -> dict[int, float]:
        """Return step -> distance of its mask from the previous mask."""
        for step, values in history.items():
            if step not in self._masks:
                units = self._config.units
                self._masks[step] = kept_units(
                    self._model,
                    {name: each.abs() if self._method.absolute else each for name, each in values.items()},
                    self._method.sparsities(self._config),
                    units.granularity,
                    units.scope,
                )
        return {
            later: mask_distance(self._masks[earlier], self._masks[later])
            for earlier, later in pairwise(history)
        }

    def met(self, history: History) -> bool:
        """Return whether to draw the ticket after this history."""
        if self._method.draw is DrawAt.FIXED:
            return bool(history)
        settled = Settled(self._method.epsilon, self._method.window)
        return settled(list(self.distances(history).values()))


def _sites(experiment: Experiment, config: RunConfig) -> dict[str, GateSite]:
    bert = structure(experiment.model)
    sites: dict[str, GateSite] = {}
    for kind in kinds_in(config.units.granularity):
        sites |= gate_sites(bert, kind)
    return sites


def _steps_per_epoch(experiment: Experiment, config: RunConfig) -> int:
    return config.training.steps_per_epoch(len(experiment.train), distributed.count())


def _steps(experiment: Experiment, config: RunConfig) -> int:
    return config.training.steps_of(len(experiment.train), distributed.count())
