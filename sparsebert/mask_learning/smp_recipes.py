"""What the released scripts of Static Model Pruning (run.sh, run_squad.sh) set from task to task."""

from __future__ import annotations

from fractions import Fraction

from sparsebert.mask_learning.rule import Goal

_HALF, _DENSE = Fraction(1, 2), Fraction(7, 10)
_SQUAD = "squad"


def ramp_steps(goal: Goal, shared: bool) -> int:
    """Steps over which the density falls; not positive where their run is longer. ``shared``: mask S."""
    if goal.task != _SQUAD:
        late = 3500 if goal.density >= Fraction(4, 5) else 5250
        return late if goal.density >= _DENSE else goal.steps - 30_000
    if goal.density >= _DENSE or (goal.density == _HALF and shared and not goal.taught):
        return 5000
    return 22_650 if _sparsest(goal) else goal.steps - 5000


def penalty_steps(goal: Goal) -> int:
    """Steps over which the penalty grows: all, but for the 10 epochs of SQuAD at a density of 0.03."""
    return 27_660 if _sparsest(goal) else goal.steps


def temperature(goal: Goal) -> float:
    """What divides the scores of mask S."""
    if goal.density == _HALF and not goal.taught:
        return {_SQUAD: 4.0, "mnli": 3.0}.get(goal.task, 1.0)
    return 4.0 if goal.density >= _DENSE else 1.0


def _sparsest(goal: Goal) -> bool:
    return goal.task == _SQUAD and goal.density == Fraction(3, 100)
