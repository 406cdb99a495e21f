"""Methods whose ticket comes out of training: a run of one round, in which a rule learns it."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sparsebert.lottery.experiment import Experiment, RunConfig
from sparsebert.lottery.method import Head, LotteryMethod, Rewind, Round, Source
from sparsebert.mask_learning.learner import Learner
from sparsebert.mask_learning.rule import Goal, Rule
from sparsebert.tickets.ticket import Ticket

if TYPE_CHECKING:
    from sparsebert.training.best_masks import BestChoice


@dataclass(frozen=True)
class LearnedMethod(LotteryMethod, Rule):
    """Base of these methods; each is derived from it and from its rule.

    There is nothing to rewind. Units compete within a matrix, as in the sources, unless a scope is given.
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        # The rule's checks, which come behind LotteryMethod's in the order of the bases.
        super(LotteryMethod, self).__post_init__()
        if (self.rewind, self.head, self.schedule_rounds) != (Rewind.PRETRAINED, Head.REWIND, 1):
            raise ValueError(f"method {self.name} has one round: there is nothing to rewind or to span")

    @property
    def scope(self) -> str:
        return "matrix"

    def rounds(self, sparsity: Fraction) -> tuple[Round, ...]:
        return (Round(Source.LEARNED, sparsity),)

    def require_units(self, granularity: str, scope: str) -> None:
        if ":" in granularity:
            raise ValueError(f"method {self.name} learns no patterns such as {granularity!r}: use blocks")

    def options(self) -> dict[str, Any]:
        of_runs = {each.name for each in fields(LotteryMethod)}
        return {name: value for name, value in super().options().items() if name not in of_runs}

    def goal(self, request: RunConfig, steps: int) -> Goal:
        """Where a run of so many steps leads."""
        task, taught = str(request.names.get("task", "")), request.distillation is not None
        return Goal(steps, request.training.warmup_steps, 1 - request.target, task, taught)

    def learner(self, model: Any, request: RunConfig, steps: int, whole: Ticket) -> Learner:
        """The rule at work in the model. ``whole``: a ticket of the model that keeps everything."""
        goal = self.goal(request, steps)
        return Learner(model, self, goal, whole, seed=request.training.seed, **asdict(request.units))

    def choice(
        self, learner: Learner, experiment: Experiment, request: RunConfig, file: Path
    ) -> BestChoice | None:
        """What chooses among the masks that training comes by, in that file; None for the last ones."""
        return None
