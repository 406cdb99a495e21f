"""What a run works on, and what was asked of it: no task or tokenizer is known here."""

from __future__ import annotations

from collections.abc import Callable, Sized
from dataclasses import asdict, dataclass, field
from fractions import Fraction
from typing import Any, Protocol

import torch
from torch import nn
from torch.utils.data import DataLoader

from sparsebert.lottery.method import LotteryMethod
from sparsebert.pruning.granularity import parse_granularity, spelled_out
from sparsebert.pruning.sparsity_schedule import exact
from sparsebert.tickets.ticket import SAME_SPARSITY, Ticket
from sparsebert.training import distributed
from sparsebert.training.distillation import Answers, Distillation
from sparsebert.training.settings import TrainingSettings


class Examples(Sized, Protocol):
    """A map-style dataset."""

    def __getitem__(self, index: int) -> Any: ...


@dataclass(frozen=True)
class Experiment:
    """A model with its head, and the data it is trained and judged on.

    ``model``: a PreTrainedModel with the weights to begin with.
    ``train``: examples, and ``collate`` makes the model's keyword arguments, labels among them, of a list of
    them; it must depend on the list alone, or a run that is resumed differs from one that is not.
    ``evaluate``: metrics of a model on the validation data, by name.
    ``metric``: the name of the one that counts, for methods that choose by it.
    ``judge``: that metric, of a model on so many examples of the training data drawn with a seed,
    or for None on the validation data; for methods that search by it.
    ``teacher``: answers the same keyword arguments with a trained model's output, or with None where it has
    nothing to say; for requests with a ``distillation``.
    ``save_extras``: writes what belongs beside the trained model (a tokenizer) into its folder.
    """

    model: Any
    train: Examples
    collate: Callable[[list[Any]], dict[str, Any]]
    evaluate: Callable[[nn.Module], dict[str, float]]
    save_extras: Callable[[str], object] | None = None
    metric: str | None = None
    judge: Callable[[nn.Module, int | None, int], float] | None = None
    teacher: Answers | None = None

    def first_batches(self, count: int, batch_size: int, seed: int) -> list[dict[str, Any]]:
        """The first batches of the training data in an order of this seed, for methods that look at
        examples."""
        loader: DataLoader[Any] = DataLoader(
            self.train,  # type: ignore[arg-type]
            batch_size,
            shuffle=True,
            generator=torch.Generator().manual_seed(seed),
            collate_fn=self.collate,
        )
        return [batch for _, batch in zip(range(count), loader, strict=False)]


@dataclass(frozen=True)
class PruningUnits:
    """What is pruned together and what competes: the arguments of these names of :func:`sparsebert.prune`."""

    granularity: str = "element"
    block_size: tuple[int, int] | None = None
    scope: str = "global"
    pooling: str = "mean"
    include_pooler: bool = False

    def __post_init__(self) -> None:
        name, block_size = spelled_out(self.granularity, self.block_size)
        object.__setattr__(self, "granularity", name)
        object.__setattr__(self, "block_size", block_size)


@dataclass(frozen=True)
class RunConfig:
    """All that decides how a run goes, but for the weights and the data.

    ``sparsity``: of the ticket to find, in [0, 1); None where the method works on a ``ticket`` that is given,
    or where its options decide how much is pruned.
    ``names``: task, model and data as people call them, for the records.
    ``distillation``: every round learns from the experiment's teacher too. What decides on a ticket by
    gradients or metrics of its own looks at the labels alone.

    Raises ValueError for a sparsity that is missing, of no use to the method, outside [0, 1) or not that of
    the given ticket, and for units or a ticket that the method has no use for, or a ticket that is missing.
    """

    method: LotteryMethod
    sparsity: float | Fraction | None = None
    units: PruningUnits = field(default_factory=PruningUnits)
    training: TrainingSettings = field(default_factory=TrainingSettings)
    ticket: Ticket | None = None
    names: dict[str, Any] = field(default_factory=dict)
    distillation: Distillation | None = None

    def __post_init__(self) -> None:
        if self.method.needs_ticket != (self.ticket is not None):
            wants = "needs a ticket" if self.method.needs_ticket else "makes its own ticket and takes none"
            raise ValueError(f"method {self.method.name} {wants}")
        if self.ticket is not None:
            if self.sparsity is not None and abs(float(self.sparsity) - self.ticket.sparsity) > SAME_SPARSITY:
                raise ValueError(f"the ticket's sparsity is {self.ticket.sparsity:.4f}, not {self.sparsity}")
        elif self.method.decides_sparsity:
            if self.sparsity is not None:
                raise ValueError(
                    f"method {self.method.name} decides itself how much is pruned: leave {self.sparsity} out"
                )
        elif self.sparsity is None:
            raise ValueError("sparsity is missing: the share of weights to prune, in [0, 1)")
        self._check_rounds()

    def _check_rounds(self) -> None:
        """Raise ValueError for rounds that the method or the granularity does not allow."""
        units, target = self.units, self.target
        pattern = parse_granularity(units.granularity, units.block_size).pattern
        self.method.require_units(units.granularity, units.scope)
        for round_ in self.method.rounds(target):
            if pattern and 0 < round_.sparsity < target:
                raise ValueError(
                    f"granularity {units.granularity!r} is reached in one step, not by way of "
                    f"{float(round_.sparsity):.0%}: use one-shot, or a step of {float(target):g}"
                )

    @property
    def target(self) -> Fraction:
        """The sparsity as an exact number; 0 where the method decides how much is pruned."""
        if self.ticket is not None:
            return Fraction(self.ticket.sparsity)
        if self.method.decides_sparsity:
            return Fraction(0)
        assert self.sparsity is not None
        target = exact("sparsity", self.sparsity)
        if not 0 <= target < 1:
            raise ValueError(f"sparsity must be in [0, 1), not {self.sparsity}")
        return target

    def describe(self) -> dict[str, Any]:
        """Plain JSON values: what makes two runs the same."""
        return {
            "method": self.method.name,
            "options": asdict(self.method),
            "sparsity": str(self.target),
            "units": asdict(self.units),
            "training": asdict(self.training),
            "names": self.names,
            "ticket": self.ticket.digest if self.ticket else None,
            "distillation": asdict(self.distillation) if self.distillation else None,
            "processes": distributed.count(),
        }
