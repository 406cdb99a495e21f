"""Levels: the sparsity after each pruning step of an iterative method."""

from __future__ import annotations

from decimal import Decimal
from enum import StrEnum
from fractions import Fraction
from numbers import Real


class Share(StrEnum):
    """What the share pruned in a step is a share of.

    ``ORIGINAL``: all prunable weights, as in Chen et al. 2020: steps of 0.1 give 10, 20, ..., 90 %.
    ``REMAINING``: the weights still kept, as in Frankle and Carbin 2019: steps of 0.2 give 20, 36, 48.8 %.
    """

    ORIGINAL = "original"
    REMAINING = "remaining"


def levels(
    target: float | Decimal | Fraction,
    step: float | Decimal | Fraction,
    share: Share,
    start: Fraction = Fraction(0),
) -> tuple[Fraction, ...]:
    """Exact sparsities after each step from ``start``; the last one is ``target``, if by a smaller step.

    Numbers are read as the decimals they are written as; a target that is reached already gives no level.
    Raises ValueError for a target outside [0, 1), so that no step prunes everything, and for a step
    outside (0, 1).
    """
    goal = exact("sparsity", target)
    size = exact("the share pruned in a step", step)
    if not 0 <= goal < 1:
        raise ValueError(f"sparsity must be in [0, 1), not {target}")
    if not 0 < size < 1:
        raise ValueError(f"the share pruned in a step must be between 0 and 1, not {step}")
    path: list[Fraction] = []
    reached = start
    while reached < goal:
        reached += size if share is Share.ORIGINAL else size * (1 - reached)
        path.append(min(reached, goal))
    return tuple(path)


def exact(what: str, value: float | Decimal | Fraction) -> Fraction:
    """A number as the decimal it is written as; ValueError naming ``what`` for anything else."""
    if isinstance(value, bool) or not isinstance(value, (Real, Decimal)):
        raise ValueError(f"{what} must be a number, not {value!r}")
    try:
        return Fraction(str(value))
    except ValueError:
        raise ValueError(f"{what} must be a finite number, not {value}") from None


def require_share(owner: object, *names: str) -> None:
    """Raise ValueError unless these fields lie between 0 and 1."""
    for name in names:
        if not 0 < getattr(owner, name) < 1:
            raise ValueError(f"{name} must be between 0 and 1, not {getattr(owner, name)}")
