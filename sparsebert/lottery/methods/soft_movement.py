"""Soft movement pruning."""

from __future__ import annotations

from dataclasses import dataclass, field

from sparsebert.lottery.mask_learning_method import PenaltyMethod
from sparsebert.lottery.method import register
from sparsebert.lottery.option_help import FINAL_WARMUP, INITIAL_WARMUP, REGULARISATION, SCORES_LEARNING_RATE
from sparsebert.mask_learning.movement import SoftMovementRule


@register("soft-movement")
@dataclass(frozen=True)
class SoftMovement(PenaltyMethod):
    """Soft movement pruning (Sanh et al. 2020, section 4.1 and appendix).

    See :class:`sparsebert.mask_learning.movement.SoftMovementRule` for the equations and the options.
    """

    rule_type = SoftMovementRule

    initial_warmup: float = field(default=SoftMovementRule.initial_warmup, metadata=INITIAL_WARMUP)
    final_warmup: float = field(default=SoftMovementRule.final_warmup, metadata=FINAL_WARMUP)
    scores_learning_rate: float = field(
        default=SoftMovementRule.scores_learning_rate, metadata=SCORES_LEARNING_RATE
    )
    threshold: float = field(
        default=SoftMovementRule.threshold,
        metadata={"help": "sigmoid of the score above which a weight is kept"},
    )
    regularisation: float = field(default=SoftMovementRule.regularisation, metadata=REGULARISATION)
    floor: float = field(
        default=SoftMovementRule.floor, metadata={"help": "minimum share of each matrix to keep"}
    )
