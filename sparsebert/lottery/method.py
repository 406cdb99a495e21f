"""Lottery methods by name: a method is a frozen dataclass of its options that lays out a run's rounds."""

from __future__ import annotations

import abc
import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from enum import Enum, StrEnum
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, TypeVar

from torch import Tensor, nn

from sparsebert.pruning import Magnitude, Method, registry
from sparsebert.tickets.ticket import Ticket
from sparsebert_kernels.errors import unknown

if TYPE_CHECKING:
    from sparsebert.lottery.experiment import Experiment, RunConfig


class Rewind(StrEnum):
    """What a round begins with, after the weights of the last one have decided on its ticket.

    ``PRETRAINED``: the very weights the run began with; optimizer and schedule begin anew.
    ``STEP``: weights, optimizer, schedule, random state and place in the data at step k of the first round.
    ``LEARNING_RATE``: the trained weights; optimizer and schedule begin anew (Renda et al. 2020).
    ``NONE``: all goes on, under one schedule that spans every round: standard pruning.
    """

    PRETRAINED = "pretrained"
    STEP = "step"
    LEARNING_RATE = "learning-rate"
    NONE = "none"


class Head(StrEnum):
    """The task head at the beginning of a round.

    ``REWIND``: as at the beginning of the run (at step k with ``Rewind.STEP``). ``KEEP``: as the last round
    left it. ``FRESH``: initialised anew, from the seed and the number of the round.
    """

    REWIND = "rewind"
    KEEP = "keep"
    FRESH = "fresh"


class Source(StrEnum):
    """Where the ticket of a round comes from.

    ``DENSE``: keeps everything. ``START``: scores of the weights the run begins with. ``TRAINED``: scores of
    the weights the last round ended with, among those it kept. ``SEARCH``: the method's own search in the
    weights the last round ended with. ``USER``: handed to the run. ``LEARNED``: what comes out of the
    round's training.
    """

    DENSE = "all"
    START = "start"
    TRAINED = "trained"
    SEARCH = "found"
    USER = "given"
    LEARNED = "learned"


@dataclass(frozen=True)
class Round:
    """One round: its ticket, then training. ``scores`` ranks the weights where the source asks for that;
    ``learning_rate`` is trained with where it is not the run's."""

    source: Source
    sparsity: Fraction = Fraction(0)
    scores: Method = field(default_factory=Magnitude)
    learning_rate: float | None = None


@dataclass(frozen=True)
class LotteryMethod(abc.ABC):
    """Base of the methods: the rewinding that all share, and hooks that most leave alone.

    ``rewind_step``: the k of ``Rewind.STEP``.
    ``schedule_rounds``: the learning-rate schedule of a round spans so many rounds, and is cut off after one.
    ``needs_ticket``: works on a ticket that is given; its sparsity is that of the ticket.
    ``joint``: works on several tasks at once.
    """

    name: ClassVar[str]
    needs_ticket: ClassVar[bool] = False
    joint: ClassVar[bool] = False

    rewind: Rewind = Rewind.PRETRAINED
    rewind_step: int = 0
    head: Head = Head.REWIND
    schedule_rounds: int = 1

    def __post_init__(self) -> None:
        if (self.rewind is Rewind.STEP) != (self.rewind_step > 0):
            raise ValueError(
                f"rewind_step={self.rewind_step} with rewind={self.rewind.value}: a step goes with 'step'"
            )
        if self.rewind is Rewind.NONE and self.head is not Head.KEEP:
            raise ValueError(
                f"without rewinding the head goes on too: head must be 'keep', not {self.head.value!r}"
            )
        if self.schedule_rounds < 1:
            raise ValueError(f"schedule_rounds must be at least 1, not {self.schedule_rounds}")

    @property
    def decides_sparsity(self) -> bool:
        """Whether the method decides how much is pruned, by a search or its options, and is not asked."""
        return False

    @property
    def granularity(self) -> str:
        """What is pruned together, where nothing else is asked for."""
        return "element"

    @property
    def scope(self) -> str:
        """What competes for a place in the ticket, where nothing else is asked for."""
        return "global"

    @abc.abstractmethod
    def rounds(self, sparsity: Fraction) -> tuple[Round, ...]:
        """The rounds that lead to this sparsity."""

    def require_units(self, granularity: str, scope: str) -> None:  # noqa: B027  (a hook)
        """Raise ValueError for units that the method cannot choose among, or a scope it does not know."""

    def begin_(self, model: nn.Module, seed: int) -> None:  # noqa: B027  (a hook)
        """Change the weights that the run begins with."""

    def require(self, experiment: Experiment, request: RunConfig) -> None:  # noqa: B027  (a hook)
        """Raise ValueError for a model, data, a teacher or a training that the method cannot work with."""

    @contextlib.contextmanager
    def round_hooks(
        self, number: int, experiment: Experiment, request: RunConfig, folder: Path
    ) -> Iterator[RoundHooks | None]:
        """Change the model for the training of a round, and say who goes along; back again at the end.

        ``folder``: the round's, where it may keep files.
        """
        yield None

    def best(self, rows: Sequence[Mapping[str, Any]], metric: str | None) -> int:
        """Of the records of the rounds so far, the number of the one whose ticket and model are the run's.

        ``metric``: the one that counts; the first of those in the records where none is named.
        """
        return len(rows) - 1

    def given(self, ticket: Ticket, model: nn.Module, seed: int) -> Ticket:
        """The ticket of the model to train, of the one that is given."""
        return ticket


@dataclass(frozen=True)
class NeedsBatches(LotteryMethod):
    """Base of the methods that look at the first ``batches`` batches of the training data."""

    batches: int = 32

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.batches < 1:
            raise ValueError(f"batches must be at least 1, not {self.batches}")


@dataclass(frozen=True)
class SearchingMethod(LotteryMethod):
    """Base of the methods with rounds of ``Source.SEARCH``: tickets that come out of a search of their own."""

    @abc.abstractmethod
    def found(self, experiment: Experiment, request: RunConfig, folder: Path, round_: Round) -> Ticket:
        """The ticket of a round; the model is as the last round ended, and ``folder`` is that round's."""


class RoundHooks(Protocol):
    """Goes along with the training of a round.

    ``callback``: a TrainerCallback, which may stop it. ``names``: of the parameters that it has put into the
    model. ``stopped``: the step at which it did, or in a process before this one. ``penalty``: what is
    added to the loss of a batch. ``examples``: told before each batch which examples it holds, by their
    numbers (int64); None where nobody asks.
    """

    @property
    def callback(self) -> Any: ...
    @property
    def names(self) -> Sequence[str]: ...
    @property
    def stopped(self) -> int | None: ...
    @property
    def examples(self) -> Callable[[Tensor], None] | None: ...
    def penalty(self) -> Tensor | None: ...


M = TypeVar("M", bound=type[LotteryMethod])
_METHODS: dict[str, type[LotteryMethod]] = {}


def register(name: str) -> Callable[[M], M]:
    """Class decorator: make a lottery method known under that name."""
    return registry.register(name, _METHODS)


def lottery_methods() -> tuple[str, ...]:
    """Names of the registered methods."""
    return tuple(_METHODS)


def lottery_method(name: str, **options: Any) -> LotteryMethod:
    """The method of that name with these options, enums by value; options that are None keep their default.

    Raises ValueError for an unknown name, option or value, offering the nearest.
    """
    if name not in _METHODS:
        raise unknown("method", name, _METHODS)
    cls = _METHODS[name]
    known = {each.name: each.default for each in fields(cls)}
    chosen: dict[str, Any] = {}
    for option, value in options.items():
        if value is None:
            continue
        if option not in known:
            raise unknown(f"option of method {name}", option, known)
        if isinstance(default := known[option], Enum):
            values = [member.value for member in type(default)]
            if value not in values:
                raise unknown(option, value, values)
            value = type(default)(value)
        chosen[option] = value
    return cls(**chosen)
