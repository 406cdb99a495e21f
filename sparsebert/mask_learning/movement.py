"""Gradual magnitude, movement and soft movement pruning, as in the movement-pruning code of Hugging Face."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction

from torch import Tensor

from sparsebert.mask_learning.rule import (
    Goal,
    PrunableUnits,
    Rule,
    Scored,
    above,
    growing_penalty,
    keep_share,
    keep_top,
    logit,
    mean_sigmoid,
    require_not_negative,
    rounded,
)
from sparsebert.mask_learning.schedules import Ramp, between_warm_ups
from sparsebert.pruning.sparsity_schedule import exact, require_share


@dataclass(frozen=True)
class Ramped(Rule):
    """Base class of the rules with a cubic ramp between two constant phases of the run.

    Attributes:
        initial_warmup: Length of the first constant phase, in multiples of the learning rate's warm-up steps,
            or without a warm-up of a tenth of the run (``Goal.density_warmup``).
        final_warmup: Length of the last constant phase, in the same multiples.
    """

    initial_warmup: float = 1.0
    final_warmup: float = 2.0

    def __post_init__(self) -> None:
        super().__post_init__()
        require_not_negative(self, "initial_warmup", "final_warmup")

    def check(self, goal: Goal) -> None:
        self.ramp(goal)

    def ramp(self, goal: Goal) -> Ramp:
        """Return the ramp of a run. Raise ValueError if the run is too short for it."""
        return between_warm_ups(goal.steps, goal.density_warmup, self.initial_warmup, self.final_warmup)


@dataclass(frozen=True)
class GradualMagnitudeRule(Ramped):
    """Gradual magnitude pruning (Zhu and Gupta 2017, "To prune, or not to prune", equation 1).

    As in the code of Sanh et al. 2020, every step keeps the largest weights of each scope, a share v(t) of
    them. v falls from 1 to the target density along the cubic. With a start ticket v begins at the ticket's
    share of the scope, and the weights that the ticket prunes rank below all others.

    The loss is computed with where(M, W, 0), so a pruned weight gets no gradient. It changes only by momentum
    and weight decay, and returns if enough other weights become smaller.
    """

    def masks(
        self, scores: Mapping[str, Tensor], units: PrunableUnits, goal: Goal, step: int
    ) -> dict[str, Tensor]:
        return keep_share(scores, units, goal, self.ramp(goal), step)


@dataclass(frozen=True)
class MovementRule(Scored, GradualMagnitudeRule):
    """Movement pruning (Sanh et al. 2020, "Movement Pruning: Adaptive Sparsity by Fine-Tuning", section 4.1).

    Keeps the top v(t) like gradual magnitude pruning, but ranks by learned scores S, which start at 0. The
    mask has a straight-through gradient: dL/dS = dL/dW' * W for every weight, pruned or not. A score rises
    while its weight moves away from zero (W * dL/dW' < 0). Scores are ranked by signed value.

    Attributes:
        regularisation: Weight of the penalty of Static Model Pruning, lambda(t) * mean over matrices of
            mean(sigmoid(S)), with lambda(t) = ``regularisation`` * (1 - (1 - t / T)^3). The paper has no
            penalty. Adam takes steps of the same size for all scores, however small their gradients, so in
            a short run the ranking of the scores is largely chance. With the penalty, the scores with the
            smallest gradients from the task fall first.
    """

    regularisation: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        require_not_negative(self, "regularisation")

    def penalty(self, scores: Mapping[str, Tensor], goal: Goal, step: int) -> Tensor | None:
        return growing_penalty(scores, self.regularisation, goal.steps, step)


@dataclass(frozen=True)
class SoftMovementRule(Scored, Ramped):
    """Soft movement pruning (Sanh et al. 2020, section 4.1 and appendix): M = (sigmoid(S) > tau).

    The threshold and a penalty on the scores decide how much is kept. tau(t) rises from 0 to ``threshold``
    along the cubic. The penalty lambda(t) * mean over matrices of mean(sigmoid(S)), with
    lambda(t) = ``regularisation`` * rho(t), rho from 0 to 1 along the same cubic, is added to the loss. S
    starts at 0. With a start ticket tau is ``threshold`` from the first step, and the scores of the units
    that the ticket prunes start below it.

    Attributes:
        threshold: Final threshold tau, between 0 and 1.
        regularisation: Final weight of the penalty.
        floor: Minimum share of a matrix to keep: at least int(``floor`` * n) + 1 of its n units stay, those
            with the highest scores. Panels are rounded after that.
    """

    threshold: float = 0.1
    regularisation: float = 400.0
    floor: float = 0.005

    def __post_init__(self) -> None:
        super().__post_init__()
        require_not_negative(self, "regularisation", "floor")
        require_share(self, "threshold")
        if self.floor >= 1:
            raise ValueError(f"floor must be below 1, got {self.floor}")

    def masks(
        self, scores: Mapping[str, Tensor], units: PrunableUnits, goal: Goal, step: int
    ) -> dict[str, Tensor]:
        last = exact("threshold", self.threshold)
        first = Fraction(0) if goal.start is None else last
        threshold = float(self.ramp(goal).at(step, first, last))
        masks = {}
        for group in units.groups:
            mask = above(scores[group.name], threshold)
            minimum = int(exact("floor", self.floor) * mask.numel()) + 1
            if int(mask.count_nonzero()) < minimum:
                mask = keep_top(scores, [group], Fraction(minimum), size=1)[group.name]
            masks[group.name] = rounded(scores[group.name], group, mask)
        return masks

    @property
    def score_threshold(self) -> float:
        return logit(self.threshold)

    def penalty(self, scores: Mapping[str, Tensor], goal: Goal, step: int) -> Tensor | None:
        progress = float(self.ramp(goal).at(step, Fraction(0), Fraction(1)))
        return self.regularisation * progress * mean_sigmoid(list(scores.values()))
