"""Lottery methods and their registry. A method is a frozen dataclass of options that plans a run's rounds."""

from __future__ import annotations

import abc
import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from enum import Enum, StrEnum
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

from torch import nn

from sparsebert.lottery.option_help import BATCHES, HEAD, REWIND
from sparsebert.pruning import Magnitude, Method, registry
from sparsebert.tickets.ticket import SAME_SPARSITY, Ticket
from sparsebert.training.distillation import Distillation
from sparsebert_kernels.errors import unknown

if TYPE_CHECKING:
    from sparsebert.lottery.experiment import Experiment, RunConfig
    from sparsebert.lottery.round_hooks import RoundHooks
    from sparsebert.training.settings import TrainingSettings


class Rewind(StrEnum):
    """The state from which a round trains, after the previous round's weights have decided on its ticket.

    ``PRETRAINED``: the initial weights of the run, with a new optimizer and schedule.
    ``STEP``: weights, optimizer, schedule, random state and position in the data at step k of the first
    round.
    ``LEARNING_RATE``: the trained weights, with a new optimizer and schedule (Renda et al. 2020).
    ``NONE``: the trained weights and the optimizer's state, under one schedule that spans all rounds
    (standard pruning).
    """

    PRETRAINED = "pretrained"
    STEP = "step"
    LEARNING_RATE = "learning-rate"
    NONE = "none"


class Head(StrEnum):
    """The task head at the start of a round.

    ``REWIND``: the head at the start of the run (at step k with ``Rewind.STEP``). ``KEEP``: the head at the
    end of the previous round. ``FRESH``: a new head, initialised from the seed and the number of the round.
    """

    REWIND = "rewind"
    KEEP = "keep"
    FRESH = "fresh"


class Source(StrEnum):
    """Origin of the ticket of a round.

    ``DENSE``: the ticket keeps everything. ``START``: scores of the run's initial weights. ``TRAINED``:
    scores of the trained weights that the previous round kept. ``SEARCH``: the method's search in the
    previous round's trained weights. ``USER``: derived from the user's ticket, or the run's start ticket.
    ``LEARNED``: learned by the training of the round.

    Run logs hold these values.
    """

    DENSE = "all"
    START = "start"
    TRAINED = "trained"
    SEARCH = "found"
    USER = "given"
    LEARNED = "learned"


@dataclass(frozen=True)
class Round:
    """One round: a ticket, then training.

    Attributes:
        source: Origin of the ticket.
        sparsity: Sparsity of the ticket; 0 if the round decides it.
        scores: Pruning method that ranks the weights, for ``Source.START`` and ``Source.TRAINED``.
        learning_rate: Learning rate of the round; None for the run's.
        title: What the title of the round says of a ticket that is not known yet; its sparsity if empty.
    """

    source: Source
    sparsity: Fraction = Fraction(0)
    scores: Method = field(default_factory=Magnitude)
    learning_rate: float | None = None
    title: str = ""


@dataclass(frozen=True)
class LotteryMethod(abc.ABC):
    """Base class of the methods, with the options of rewinding that all methods share, and hooks.

    Fields are options. ``metadata["help"]`` of a field holds the help text of its command-line option.

    Attributes:
        name: Name of the method, set by :func:`register`.
        needs_ticket: Whether the method needs a ticket of the user, whose sparsity it adopts.
        multi_task: Whether the method trains several tasks at once.
        takes_start_ticket: Whether a run may start from a ticket instead of the dense model.
        distillation: Settings of distillation for a run that sets none.
        warmup_ratio: Warm-up of a run that sets none, as a share of the steps of a round; None for none.
        rewind: State from which each round trains.
        rewind_step: Step k of ``Rewind.STEP``.
        head: Task head at the start of each round.
        schedule_rounds: Number of rounds that the learning-rate schedule would span; each round uses the
            first part of it.
    """

    name: ClassVar[str]
    needs_ticket: ClassVar[bool] = False
    multi_task: ClassVar[bool] = False
    takes_start_ticket: ClassVar[bool] = False
    distillation: ClassVar[Distillation] = Distillation()
    warmup_ratio: ClassVar[float | None] = None

    rewind: Rewind = field(default=Rewind.PRETRAINED, metadata=REWIND)
    rewind_step: int = field(default=0, metadata={"help": "optimizer step that --rewind step returns to"})
    head: Head = field(default=Head.REWIND, metadata=HEAD)
    schedule_rounds: int = field(
        default=1,
        metadata={"help": "rounds that the learning-rate schedule spans; Chen et al.: 10"},
    )

    def __post_init__(self) -> None:
        if (self.rewind is Rewind.STEP) != (self.rewind_step > 0):
            raise ValueError(
                "rewind='step' needs a positive rewind_step, and other values of rewind need rewind_step=0: "
                f"got rewind={self.rewind.value!r} and rewind_step={self.rewind_step}"
            )
        if self.rewind is Rewind.NONE and self.head is not Head.KEEP:
            raise ValueError(
                f"rewind='none' also keeps the trained head: head must be 'keep', got {self.head.value!r}"
            )
        require_at_least_one(self, "schedule_rounds")

    @property
    def decides_sparsity(self) -> bool:
        """Whether a search or the method's options decide the sparsity instead of the user."""
        return False

    @property
    def granularity(self) -> str:
        """Default granularity."""
        return "element"

    @property
    def scope(self) -> str:
        """Default scope of the competition between units."""
        return "global"

    @abc.abstractmethod
    def rounds(self, sparsity: Fraction) -> tuple[Round, ...]:
        """Return the rounds that lead to a sparsity. Raise ValueError if the method cannot reach it."""

    def rounds_from(self, start: Fraction, sparsity: Fraction) -> tuple[Round, ...]:
        """Return the rounds that lead from a start ticket of sparsity ``start`` to a sparsity.

        By default the start ticket takes the place of the dense ticket of the first round, and rounds that
        would prune at most as much as it are left out.
        """
        first, *later = self.rounds(sparsity)
        reached = start + Fraction(SAME_SPARSITY)
        return (
            replace(first, source=Source.USER, sparsity=start),
            *(each for each in later if each.source is not Source.TRAINED or each.sparsity > reached),
        )

    def shares(self, model: nn.Module, sparsity: Fraction) -> Fraction | dict[str, Fraction]:
        """Return the share of the units that a round of a sparsity prunes, or one for each kind of unit."""
        return sparsity

    def require_start(self, start: Ticket, model: nn.Module, config: RunConfig, steps: int) -> None:  # noqa: B027  (a hook)
        """Raise ValueError if the method cannot start a run from a ticket.

        Args:
            start: Start ticket over the matrices that the run prunes.
            model: The model.
            config: Configuration of the run.
            steps: Optimizer steps of a round.
        """

    def density_warmup(self, training: TrainingSettings) -> str | None:
        """Return what warm-ups of the density are multiples of, unless it is the learning-rate warm-up.

        It is part of a run's description: earlier versions, which had no such phases without a learning-rate
        warm-up, began runs that cannot be continued with them.
        """
        return None

    def require_units(self, granularity: str, scope: str) -> None:  # noqa: B027  (a hook)
        """Raise ValueError for a granularity or a scope that the method does not support."""

    def require(self, experiment: Experiment, config: RunConfig) -> None:  # noqa: B027  (a hook)
        """Raise ValueError if the method does not support the model, data, teacher or training settings."""

    def file_bytes(self, experiment: Experiment, config: RunConfig) -> int:
        """Return the bytes of the method's own files in the folder of a run, besides masks and weights."""
        return 0

    def initialise_(self, model: nn.Module, seed: int) -> None:  # noqa: B027  (a hook)
        """Change the initial weights of the run."""

    def derive_ticket(self, ticket: Ticket, model: nn.Module, seed: int) -> Ticket:
        """Derive the ticket to train from the user's ticket."""
        return ticket

    @contextlib.contextmanager
    def round_hooks(
        self, number: int, experiment: Experiment, config: RunConfig, folder: Path
    ) -> Iterator[RoundHooks | None]:
        """Change the model before a round, yield hooks for its training, and restore the model afterwards.

        Args:
            number: Number of the round, from 0.
            experiment: Model and data.
            config: Configuration of the run.
            folder: Folder of the round, where the method may keep files.
        """
        yield None

    def best_round(self, rows: Sequence[Mapping[str, Any]], metric: str | None) -> int:
        """Return the number of the round whose ticket and model become the run's.

        Args:
            rows: Records of the rounds so far.
            metric: Name of the metric to judge by; None for the first in the records.
        """
        return len(rows) - 1


@dataclass(frozen=True)
class NeedsBatches(LotteryMethod):
    """Base class of the methods whose scores need training data.

    Attributes:
        batches: Number of batches to take from the training data.
    """

    batches: int = field(default=32, metadata=BATCHES)

    def __post_init__(self) -> None:
        super().__post_init__()
        require_at_least_one(self, "batches")


@dataclass(frozen=True)
class SearchingMethod(LotteryMethod):
    """Base class of the methods with rounds of ``Source.SEARCH``."""

    @abc.abstractmethod
    def find_ticket(self, experiment: Experiment, config: RunConfig, folder: Path, round_: Round) -> Ticket:
        """Search for the ticket of a round.

        Args:
            experiment: Data, and the model with the weights that the last round ended with.
            config: Configuration of the run.
            folder: Folder of the last round.
            round_: The round that is to train the ticket.
        """


def require_at_least_one(options: object, *names: str) -> None:
    """Raise ValueError unless these fields are at least 1; fields that are None pass."""
    for name in names:
        value = getattr(options, name)
        if value is not None and value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")


M = TypeVar("M", bound=type[LotteryMethod])
_METHODS: dict[str, type[LotteryMethod]] = {}


def register(name: str) -> Callable[[M], M]:
    """Return a class decorator that registers a lottery method under a name."""
    return registry.register(name, _METHODS)


def lottery_methods() -> tuple[str, ...]:
    """Return the names of the registered methods."""
    return tuple(_METHODS)


def starting_methods() -> list[str]:
    """Return the names of the registered methods that may start from a ticket, sorted."""
    return sorted(name for name, method in _METHODS.items() if method.takes_start_ticket)


def lottery_method(name: str, **options: Any) -> LotteryMethod:
    """Build a method from its name and options.

    Args:
        name: Name of a registered method.
        **options: Fields of the method, enums by value. None stands for the default.

    Raises:
        ValueError: The name, an option or a value is unknown; the message suggests the nearest match.
    """
    if name not in _METHODS:
        raise unknown("method", name, _METHODS)
    cls = _METHODS[name]
    defaults = {each.name: each.default for each in fields(cls)}
    values: dict[str, Any] = {}
    for option, value in options.items():
        if value is None:
            continue
        if option not in defaults:
            raise unknown(f"option of method {name}", option, defaults)
        if isinstance(default := defaults[option], Enum):
            allowed = [member.value for member in type(default)]
            if value not in allowed:
                raise unknown(option, value, allowed)
            value = type(default)(value)
        values[option] = value
    return cls(**values)
