"""The inputs of a run: an experiment (model and data) and a configuration, free of tasks and tokenizers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sized
from dataclasses import asdict, dataclass, field
from fractions import Fraction
from itertools import islice
from typing import Any, Protocol

import torch
from torch import nn
from torch.utils.data import DataLoader

from sparsebert.lottery.method import LotteryMethod, Round, starting_methods
from sparsebert.pruning.granularity import parse_granularity
from sparsebert.pruning.pruning_units import PruningUnits
from sparsebert.pruning.sparsity_schedule import exact
from sparsebert.tickets.ticket import SAME_SPARSITY, Ticket, require_ticket
from sparsebert.training import distributed
from sparsebert.training.distillation import Answers, Distillation
from sparsebert.training.run_status import Judge
from sparsebert.training.settings import TrainingSettings


class Examples(Sized, Protocol):
    """A map-style dataset."""

    def __getitem__(self, index: int) -> Any: ...


@dataclass(frozen=True)
class Experiment:
    """A model with its head, and the data to train and evaluate it on.

    Attributes:
        model: A PreTrainedModel with its initial weights.
        train: Training examples.
        collate: Turns a list of examples into keyword arguments of the model, including labels. It must
            depend only on the list; otherwise a resumed run differs.
        evaluate: Returns the metrics of a model on the validation data, by name.
        save_extras: Writes additional files, such as the tokenizer, into the folder of the trained model.
        metric: Name of the primary metric, for methods that select by it.
        judge: Returns the primary metric of a model; for methods that search by it. Its arguments are the
            model, the number of training examples to sample (None for the validation data), and the seed of
            the sample.
        teacher: Maps the same keyword arguments to a trained model's output, or to None for batches without a
            teacher; for runs with a ``distillation``.
        chance: The metrics without any learning, by name, for the records; None if they are unknown.
        fingerprints: Digests of the data, the pre-trained model and the tokenizer, for the records.
    """

    model: Any
    train: Examples
    collate: Callable[[list[Any]], dict[str, Any]]
    evaluate: Callable[[nn.Module], dict[str, float]]
    save_extras: Callable[[str], object] | None = None
    metric: str | None = None
    judge: Judge | None = None
    teacher: Answers | None = None
    chance: Mapping[str, float] | None = None
    fingerprints: Mapping[str, str] = field(default_factory=dict)

    def first_batches(self, count: int, batch_size: int, seed: int) -> list[dict[str, Any]]:
        """Return the first batches of the training data, shuffled with the seed."""
        return list(islice(self.batches(batch_size, seed), count))

    def batches(self, batch_size: int, seed: int) -> Iterator[dict[str, Any]]:
        """Iterate over all batches of the training data, shuffled with the seed."""
        loader: DataLoader[Any] = DataLoader(
            self.train,  # type: ignore[arg-type]
            batch_size,
            shuffle=True,
            generator=torch.Generator().manual_seed(seed),
            collate_fn=self.collate,
        )
        return iter(loader)


@dataclass(frozen=True)
class RunConfig:
    """The configuration of a run: everything except weights and data that determines its result.

    Attributes:
        method: The lottery method with its options.
        sparsity: Sparsity of the ticket to find, in [0, 1); None if the user's ticket or the method decides.
        units: Units that are pruned together, and the scope in which they compete.
        training: Settings of each round.
        ticket: The user's ticket, for methods that need one.
        names: Task, model and data, for the records.
        distillation: Settings for learning from the experiment's teacher in every round; None without a
            teacher. Scores and metrics that decide on a ticket use only the labels.
        start_ticket: Ticket from which the method starts instead of the dense model, for methods that support
            it. Only its mask is used: the weights are the model's.
        constant_phases: Whether methods that ramp the density hold it at the start and the end of a run
            without a learning-rate warm-up, too. Runs that an earlier version began do not.
        default_warmup: Warm-up of ``training`` that the run did not set, as a share of a round: that of its
            method, or of the method with which a dense run is compared; None for none.

    Raises:
        ValueError: The sparsity is missing, superfluous, outside [0, 1) or different from the sparsity of the
            user's ticket; a ticket is missing or superfluous; or the method does not support the units.
    """

    method: LotteryMethod
    sparsity: float | Fraction | None = None
    units: PruningUnits = field(default_factory=PruningUnits)
    training: TrainingSettings = field(default_factory=TrainingSettings)
    ticket: Ticket | None = None
    names: dict[str, Any] = field(default_factory=dict)
    distillation: Distillation | None = None
    start_ticket: Ticket | None = None
    constant_phases: bool = True
    default_warmup: float | None = None

    def __post_init__(self) -> None:
        if self.start_ticket is not None:
            require_ticket(self.start_ticket)
            if not self.method.takes_start_ticket:
                raise ValueError(
                    f"method {self.method.name} does not start from a ticket: omit the start ticket, or use "
                    f"{', '.join(starting_methods())}"
                )
        self._check_sparsity()
        self._check_rounds()

    def _check_sparsity(self) -> None:
        name = self.method.name
        if self.method.needs_ticket and self.ticket is None:
            raise ValueError(f"method {name} needs a ticket: pass one")
        if self.ticket is not None and not self.method.needs_ticket:
            raise ValueError(f"method {name} finds its own ticket: omit the ticket")
        if self.ticket is not None:
            share = self.ticket.sparsity
            if self.sparsity is not None and abs(float(self.sparsity) - share) > SAME_SPARSITY:
                raise ValueError(
                    f"sparsity must equal the ticket's sparsity, {share:.4f}, got {self.sparsity}: omit it"
                )
        elif self.method.decides_sparsity:
            if self.sparsity is not None:
                raise ValueError(f"method {name} decides the sparsity: omit it, got {self.sparsity}")
        elif self.sparsity is None:
            raise ValueError("sparsity is missing: pass the share of weights to prune, in [0, 1)")

    def _check_rounds(self) -> None:
        """Raise ValueError for rounds that the method or the granularity does not allow."""
        units, target = self.units, self.target
        pattern = parse_granularity(units.granularity, units.block_size, units.round_to).pattern
        self.method.require_units(units.granularity, units.scope)
        for round_ in self.rounds:
            if pattern and 0 < round_.sparsity < target:
                raise ValueError(
                    f"granularity {units.granularity!r} has a fixed sparsity and cannot have a round of "
                    f"{float(round_.sparsity):.0%} before it: use one-shot, or a step of {float(target):g}"
                )

    @property
    def rounds(self) -> tuple[Round, ...]:
        """The rounds of the run."""
        if self.start_ticket is None:
            return self.method.rounds(self.target)
        return self.method.rounds_from(Fraction(self.start_ticket.sparsity), self.target)

    @property
    def target(self) -> Fraction:
        """The sparsity as an exact number; 0 if the method decides it."""
        if self.ticket is not None:
            return Fraction(self.ticket.sparsity)
        if self.method.decides_sparsity:
            return Fraction(0)
        assert self.sparsity is not None
        target = exact("sparsity", self.sparsity)
        if not 0 <= target < 1:
            raise ValueError(f"sparsity must be in [0, 1), got {self.sparsity}; write 90 % as 0.9")
        return target

    def defaults(self) -> dict[str, Any]:
        """Return the default options and training settings, in the form of :meth:`describe`."""
        return {"options": asdict(type(self.method)()), "training": TrainingSettings().describe()}

    def describe(self) -> dict[str, Any]:
        """Return a description as plain JSON values; equal runs have equal descriptions."""
        return {
            "method": self.method.name,
            "options": asdict(self.method),
            "sparsity": str(self.target),
            "units": asdict(self.units),
            "training": self.training.describe(),
            "density_warmup": self.method.density_warmup(self.training) if self.constant_phases else None,
            "names": self.names,
            "ticket": self.ticket.digest if self.ticket else None,
            "start_ticket": self.start_ticket.digest if self.start_ticket else None,
            "distillation": asdict(self.distillation) if self.distillation else None,
            "processes": distributed.count(),
        }
