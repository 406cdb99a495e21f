"""The sparsity after each pruning step of an iterative method, as exact fractions."""

from __future__ import annotations

from decimal import Decimal
from enum import StrEnum
from fractions import Fraction
from numbers import Real


class Share(StrEnum):
    """The reference of the share that a step prunes.

    Attributes:
        ORIGINAL: All prunable weights, as in Chen et al. 2020: steps of 0.1 give 10, 20, ..., 90 %.
        REMAINING: The weights still kept, as in Frankle and Carbin 2019: steps of 0.2 give 20, 36, 48.8 %.
    """

    ORIGINAL = "original"
    REMAINING = "remaining"


def levels(
    target: float | Decimal | Fraction,
    step: float | Decimal | Fraction,
    share: Share,
    start: Fraction = Fraction(0),
) -> tuple[Fraction, ...]:
    """Return the exact sparsity after each step.

    Numbers are read exactly as their decimal spellings.

    Args:
        target: Sparsity of the last level, in [0, 1); the last step may be a smaller one.
        step: Share pruned in a step, in (0, 1).
        share: The weights that ``step`` is a share of.
        start: Sparsity before the first step.

    Returns:
        One level a step; () if ``start`` has reached the target.

    Raises:
        ValueError: ``target`` or ``step`` is out of range.
    """
    goal = exact("sparsity", target)
    size = exact("the share pruned in a step", step)
    if not 0 <= goal < 1:
        raise ValueError(f"sparsity must be in [0, 1), got {target}")
    if not 0 < size < 1:
        raise ValueError(f"the share pruned in a step must be between 0 and 1, got {step}")
    path: list[Fraction] = []
    reached = start
    while reached < goal:
        reached += size if share is Share.ORIGINAL else size * (1 - reached)
        path.append(min(reached, goal))
    return tuple(path)


def exact(what: str, value: float | Decimal | Fraction) -> Fraction:
    """Return the exact value of a number's decimal spelling.

    Raises ValueError, naming ``what``, for anything else.
    """
    if isinstance(value, bool) or not isinstance(value, (Real, Decimal)):
        raise ValueError(f"{what} must be a number, got {value!r}")
    try:
        return Fraction(str(value))
    except ValueError:
        raise ValueError(f"{what} must be a finite number, got {value}") from None


def require_share(owner: object, *names: str) -> None:
    """Raise ValueError unless these fields of ``owner`` lie between 0 and 1."""
    for name in names:
        if not 0 < getattr(owner, name) < 1:
            raise ValueError(f"{name} must be between 0 and 1, got {getattr(owner, name)}")
