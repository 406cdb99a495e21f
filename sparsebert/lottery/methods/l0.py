"""L0 regularisation with hard concrete gates."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from sparsebert.lottery.mask_learning_method import PenaltyMethod
from sparsebert.lottery.method import register
from sparsebert.lottery.option_help import REGULARISATION, SCORES_LEARNING_RATE
from sparsebert.mask_learning.l0 import HardConcreteRule


@register("l0")
@dataclass(frozen=True)
class HardConcrete(PenaltyMethod):
    """L0 regularisation (Louizos et al. 2018), with the constants of Sanh et al. 2020.

    See :class:`sparsebert.mask_learning.l0.HardConcreteRule` for the equations and the options.
    """

    rule_type = HardConcreteRule
    # Gates are random numbers: while they are trained, there is no mask to start from.
    takes_start_ticket: ClassVar[bool] = False

    scores_learning_rate: float = field(
        default=HardConcreteRule.scores_learning_rate, metadata=SCORES_LEARNING_RATE
    )
    regularisation: float = field(default=HardConcreteRule.regularisation, metadata=REGULARISATION)
