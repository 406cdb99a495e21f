"""Schedules of densities and thresholds, in exact arithmetic: a run ends exactly at its target density."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction

Curve = Callable[[Fraction], Fraction]


def cubic(progress: Fraction) -> Fraction:
    """Return 1 - (1 - x)^3 (Zhu and Gupta 2017, "To prune, or not to prune", equation 1)."""
    return 1 - (1 - progress) ** 3


def linear(progress: Fraction) -> Fraction:
    """Return x."""
    return progress


CURVES: dict[str, Curve] = {"cubic": cubic, "linear": linear}


@dataclass(frozen=True)
class Ramp:
    """A transition from one value at step ``begin`` to another at step ``end``, constant before and after it.

    Raises:
        ValueError: ``begin`` is negative, or ``end`` is not after ``begin``.
    """

    begin: int
    end: int
    curve: Curve = cubic

    def __post_init__(self) -> None:
        if not 0 <= self.begin < self.end:
            raise ValueError(
                f"a ramp must end after it begins, at step 0 or later: got steps {self.begin} to {self.end}"
            )

    def at(self, step: int, first: Fraction, last: Fraction) -> Fraction:
        """Return the value between ``first`` and ``last`` at an optimizer step, counted from 0."""
        progress = Fraction(min(max(step - self.begin, 0), self.end - self.begin), self.end - self.begin)
        return first + (last - first) * self.curve(progress)


def between_warm_ups(steps: int, warmup: int, before: float, after: float, curve: Curve = cubic) -> Ramp:
    """Return the ramp between the two constant phases of a run.

    Args:
        steps: Optimizer steps of the run.
        warmup: Steps that ``before`` and ``after`` are multiples of.
        before: Length of the first constant phase, in multiples of ``warmup``.
        after: Length of the last constant phase, in multiples of ``warmup``.
        curve: Shape of the ramp.

    Raises:
        ValueError: The constant phases leave no step between them.
    """
    begin, end = round(before * warmup), steps - round(after * warmup)
    if begin >= end:
        raise ValueError(
            f"a run of {steps} steps has no room for the ramp of the density between {begin} constant steps "
            f"at its start and {steps - end} at its end ({before:g} and {after:g} times {warmup} warm-up "
            "steps): train longer or warm up less"
        )
    return Ramp(begin, end, curve)
