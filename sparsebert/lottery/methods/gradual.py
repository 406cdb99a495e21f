"""Gradual magnitude pruning."""

from __future__ import annotations

from dataclasses import dataclass, field

from sparsebert.lottery.mask_learning_method import MaskLearningMethod
from sparsebert.lottery.method import register
from sparsebert.lottery.option_help import FINAL_WARMUP, INITIAL_WARMUP
from sparsebert.mask_learning.movement import GradualMagnitudeRule


@register("gradual")
@dataclass(frozen=True)
class GradualMagnitude(MaskLearningMethod):
    """Gradual magnitude pruning (Zhu and Gupta 2017, "To prune, or not to prune").

    See :class:`sparsebert.mask_learning.movement.GradualMagnitudeRule` for the equations and the options.
    """

    rule_type = GradualMagnitudeRule

    initial_warmup: float = field(default=GradualMagnitudeRule.initial_warmup, metadata=INITIAL_WARMUP)
    final_warmup: float = field(default=GradualMagnitudeRule.final_warmup, metadata=FINAL_WARMUP)
