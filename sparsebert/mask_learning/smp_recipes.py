"""Settings of the released scripts of Static Model Pruning (run.sh, run_squad.sh), task by task."""

from __future__ import annotations

from fractions import Fraction

from sparsebert.mask_learning.rule import Goal

_HALF, _DENSE = Fraction(1, 2), Fraction(7, 10)
_SQUAD = "squad"


def ramp_steps(goal: Goal, shared: bool) -> int:
    """Return the steps over which the density falls.

    The result may be 0 or negative if the run is shorter than the runs of the scripts.

    Args:
        goal: Length and target density of the run, and its task.
        shared: Whether the mask is S.
    """
    if goal.task != _SQUAD:
        dense = 3500 if goal.density >= Fraction(4, 5) else 5250
        return dense if goal.density >= _DENSE else goal.steps - 30_000
    if goal.density >= _DENSE or (goal.density == _HALF and shared and not goal.taught):
        return 5000
    return 22_650 if _sparsest(goal) else goal.steps - 5000


def penalty_steps(goal: Goal) -> int:
    """Return the steps over which the penalty grows: the whole run, except for SQuAD at a density of 0.03."""
    return 27_660 if _sparsest(goal) else goal.steps


def temperature(goal: Goal) -> float:
    """Return the temperature of mask S."""
    if goal.density == _HALF and not goal.taught:
        return {_SQUAD: 4.0, "mnli": 3.0}.get(goal.task, 1.0)
    return 4.0 if goal.density >= _DENSE else 1.0


def _sparsest(goal: Goal) -> bool:
    return goal.task == _SQUAD and goal.density == Fraction(3, 100)
