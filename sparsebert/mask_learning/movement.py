"""The rules of HF's movement-pruning code, whose thresholds rise and fall between two warm-ups."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction

from torch import Tensor

from sparsebert.mask_learning.rule import (
    Candidates,
    Goal,
    Rule,
    Scored,
    above,
    growing_penalty,
    keep_share,
    keep_top,
    mean_sigmoid,
    require_not_negative,
)
from sparsebert.mask_learning.schedules import Ramp, between_warm_ups
from sparsebert.pruning.sparsity_schedule import exact, require_share


@dataclass(frozen=True)
class Ramped(Rule):
    """Base of the rules whose threshold goes along a cubic, between two constant parts of the run.

    ``initial_warmup``, ``final_warmup``: the lengths of these two, in units of the steps in which the
    learning rate warms up: without a warm-up there are none, and the ramp takes up the whole run.
    """

    initial_warmup: float = 1.0
    final_warmup: float = 2.0

    def __post_init__(self) -> None:
        super().__post_init__()
        require_not_negative(self, "initial_warmup", "final_warmup")

    def check(self, goal: Goal) -> None:
        self.ramp(goal)

    def ramp(self, goal: Goal) -> Ramp:
        return between_warm_ups(goal.steps, goal.warmup, self.initial_warmup, self.final_warmup)


@dataclass(frozen=True)
class GradualMagnitudeRule(Ramped):
    """Gradual magnitude pruning (Zhu and Gupta 2017, "To prune, or not to prune", equation 1), as in the code
    of Sanh et al. 2020: at every step the largest weights are kept, the share v(t) of each matrix, where v
    falls from 1 to the density along the cubic.

    The loss sees where(M, W, 0), so a pruned weight has no gradient; it moves by momentum and weight decay
    alone, and may come back while the others shrink.
    """

    def masks(
        self, scores: Mapping[str, Tensor], candidates: Candidates, goal: Goal, step: int
    ) -> dict[str, Tensor]:
        return keep_share(scores, candidates, self.ramp(goal).at(step, Fraction(1), goal.density))


@dataclass(frozen=True)
class MovementRule(Scored, GradualMagnitudeRule):
    """Movement pruning (Sanh et al. 2020, "Movement Pruning: Adaptive Sparsity by Fine-Tuning", section 4.1).

    As gradual magnitude pruning, but by learned scores S, which begin at 0. The gradient goes straight
    through the choice: dL/dS = dL/dW' * W for every weight, pruned or not, so that a score rises while its
    weight moves away from zero (W * dL/dW' < 0); no absolute value is taken.

    ``regularisation``: what the loss gets of the scores, as in Static Model Pruning: lambda(t) * mean over
    matrices of the mean of sigma(S), with lambda(t) = ``regularisation`` * (1 - (1 - t / T)^3). The source
    has none. Adam makes the steps of all scores alike, however small their gradients, so that in a short
    run they rank weights by chance; with a regularisation those that the task pulls at least sink first.
    """

    regularisation: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        require_not_negative(self, "regularisation")

    def penalty(self, scores: Mapping[str, Tensor], goal: Goal, step: int) -> Tensor | None:
        return growing_penalty(scores, self.regularisation, goal.steps, step)


@dataclass(frozen=True)
class SoftMovementRule(Scored, Ramped):
    """Soft movement pruning (Sanh et al. 2020, section 4.1 and appendix): M = (sigma(S) > tau), and how much
    is kept follows from the threshold and a penalty on the scores.

    tau(t) goes from 0 to ``threshold`` along the cubic. The loss gets lambda(t) * mean over matrices of the
    mean of sigma(S), with lambda(t) = ``regularisation`` * tau(t) / threshold. At least
    int(``floor`` * n) + 1 of the n units of a matrix stay, those of the highest scores. S begins at 0.
    """

    threshold: float = 0.1
    regularisation: float = 400.0
    floor: float = 0.005

    def __post_init__(self) -> None:
        super().__post_init__()
        require_not_negative(self, "regularisation", "floor")
        require_share(self, "threshold")
        if self.floor >= 1:
            raise ValueError(f"floor must be below 1, not {self.floor}")

    def masks(
        self, scores: Mapping[str, Tensor], candidates: Candidates, goal: Goal, step: int
    ) -> dict[str, Tensor]:
        threshold = float(self.ramp(goal).at(step, Fraction(0), exact("threshold", self.threshold)))
        masks = {}
        for group in candidates.groups:
            mask = above(scores[group.name], threshold)
            least = int(exact("floor", self.floor) * mask.numel()) + 1
            if int(mask.count_nonzero()) < least:
                mask = keep_top(scores, [group], Fraction(least), size=1)[group.name]
            masks[group.name] = mask
        return masks

    def penalty(self, scores: Mapping[str, Tensor], goal: Goal, step: int) -> Tensor | None:
        share = float(self.ramp(goal).at(step, Fraction(0), Fraction(1)))
        return self.regularisation * share * mean_sigmoid(list(scores.values()))
