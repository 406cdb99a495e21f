"""Movement pruning."""

from __future__ import annotations

from dataclasses import dataclass, field

from sparsebert.lottery.mask_learning_method import MaskLearningMethod
from sparsebert.lottery.method import register
from sparsebert.lottery.option_help import FINAL_WARMUP, INITIAL_WARMUP, REGULARISATION, SCORES_LEARNING_RATE
from sparsebert.mask_learning.movement import MovementRule


@register("movement")
@dataclass(frozen=True)
class Movement(MaskLearningMethod):
    """Movement pruning (Sanh et al. 2020, "Movement Pruning: Adaptive Sparsity by Fine-Tuning").

    See :class:`sparsebert.mask_learning.movement.MovementRule` for the equations and the options.
    """

    rule_type = MovementRule

    initial_warmup: float = field(default=MovementRule.initial_warmup, metadata=INITIAL_WARMUP)
    final_warmup: float = field(default=MovementRule.final_warmup, metadata=FINAL_WARMUP)
    scores_learning_rate: float = field(
        default=MovementRule.scores_learning_rate, metadata=SCORES_LEARNING_RATE
    )
    regularisation: float = field(default=MovementRule.regularisation, metadata=REGULARISATION)
