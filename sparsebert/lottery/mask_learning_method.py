"""Methods of one round in which training learns the ticket by a rule of :mod:`sparsebert.mask_learning`."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, fields
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from sparsebert.bert import weight_of
from sparsebert.lottery.experiment import Experiment, RunConfig
from sparsebert.lottery.method import Head, LotteryMethod, Rewind, Round, Source
from sparsebert.lottery.start_ticket import require_biases_kept, types_of, unit_groups_of
from sparsebert.mask_learning.learner import Learner
from sparsebert.mask_learning.movement import Ramped
from sparsebert.mask_learning.rule import Goal, PrunableUnits, Rule, Scored
from sparsebert.mask_learning.start_mask import kept_units, require_start_mask, started
from sparsebert.pruning.pruning_units import PruningUnits
from sparsebert.tickets.ticket import Ticket

if TYPE_CHECKING:
    from sparsebert.training.best_masks import BestMasks
    from sparsebert.training.settings import TrainingSettings


@dataclass(frozen=True)
class MaskLearningMethod(LotteryMethod):
    """Base class of the methods that learn their masks.

    A method has an option for every option of its rule. Units compete within a matrix by default, as in the
    papers. The options of rewinding do not apply, because there is a single round.

    Attributes:
        rule_type: Class of the rule.
    """

    rule_type: ClassVar[type[Rule]]
    takes_start_ticket: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        _ = self.rule  # checks the options
        if (self.rewind, self.head, self.schedule_rounds) != (Rewind.PRETRAINED, Head.REWIND, 1):
            raise ValueError(f"method {self.name} has one round: omit rewind, head and schedule_rounds")

    @property
    def rule(self) -> Rule:
        """The rule with the method's options."""
        return self.rule_type(**{each.name: getattr(self, each.name) for each in fields(self.rule_type)})

    @property
    def scope(self) -> str:
        return "matrix"

    def density_warmup(self, training: TrainingSettings) -> str | None:
        rule = self.rule
        if not isinstance(rule, Ramped) or training.warmup_steps or training.warmup_ratio:
            return None
        return "a tenth of the run" if rule.initial_warmup or rule.final_warmup else None

    def rounds(self, sparsity: Fraction) -> tuple[Round, ...]:
        return (Round(Source.LEARNED, sparsity),)

    def rounds_from(self, start: Fraction, sparsity: Fraction) -> tuple[Round, ...]:
        return self.rounds(sparsity)

    def require_start(self, start: Ticket, model: Any, config: RunConfig, steps: int) -> None:
        """Raise ValueError unless the masks of the first step can be those of the start ticket."""
        require_biases_kept(start, self.name)
        groups = unit_groups_of(model, config.units)
        kept = kept_units(start, groups)
        goal = started(self.goal(config, steps), kept, groups)
        self.rule.check(goal)
        units = PrunableUnits(groups, types_of(model, config.units), config.units.scope)
        require_start_mask(self.rule, units, goal, kept)

    def require_units(self, granularity: str, scope: str) -> None:
        if ":" in granularity:
            raise ValueError(
                f"method {self.name} cannot learn patterns such as {granularity!r}: use blocks, such as 4x1"
            )

    def score_bytes(self, model: Any, units: PruningUnits) -> int:
        """Return the bytes of the scores that the rule trains for the units of a model."""
        if not isinstance(self.rule, Scored):
            return 0
        groups = unit_groups_of(model, units)
        # At least float32, as the learner's.
        sizes = {group.name: max(weight_of(model, group.name).element_size(), 4) for group in groups}
        return sum(math.prod(group.grid) * sizes[group.name] for group in groups)

    def goal(self, config: RunConfig, steps: int) -> Goal:
        """Return the goal of a run of ``steps`` optimizer steps."""
        task, taught = str(config.names.get("task", "")), config.distillation is not None
        warmup = config.training.warmup_of(steps)
        return Goal(steps, warmup, 1 - config.target, task, taught, constant_phases=config.constant_phases)

    def learner(
        self, model: Any, config: RunConfig, steps: int, origin: Ticket, start: Ticket | None = None
    ) -> Learner:
        """Apply the rule to a model and return its learner.

        Args:
            model: A model of transformers.
            config: Configuration of the run.
            steps: Optimizer steps of the run.
            origin: A dense ticket of the model.
            start: Start ticket over the matrices that the run prunes; None to start dense.
        """
        shared = {each.name for each in fields(LotteryMethod)}
        options = {each.name: getattr(self, each.name) for each in fields(self) if each.name not in shared}
        return Learner(
            model,
            self.rule,
            self.goal(config, steps),
            origin,
            seed=config.training.seed,
            method=self.name,
            options=options,
            start=start,
            **asdict(config.units),
        )

    def best_masks(
        self, learner: Learner, experiment: Experiment, config: RunConfig, file: Path
    ) -> BestMasks | None:
        """Return a callback that keeps the best masks of the training in a file; None to use the last."""
        return None


@dataclass(frozen=True)
class PenaltyMethod(MaskLearningMethod):
    """Base class of the methods whose penalty decides the sparsity. Their scores do not compete."""

    @property
    def decides_sparsity(self) -> bool:
        return True

    def require_units(self, granularity: str, scope: str) -> None:
        super().require_units(granularity, scope)
        if scope != self.scope:
            raise ValueError(f"method {self.name} does not compare scores: omit scope, got {scope!r}")
