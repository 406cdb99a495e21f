"""What changes over the steps of a run, as exact numbers: a density ends at exactly what was asked for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction

Curve = Callable[[Fraction], Fraction]


def cubic(progress: Fraction) -> Fraction:
    """1 - (1 - x)^3: fast while much is left to prune (Zhu and Gupta 2017, "To prune, or not to prune")."""
    return 1 - (1 - progress) ** 3


def linear(progress: Fraction) -> Fraction:
    return progress


CURVES: dict[str, Curve] = {"cubic": cubic, "linear": linear}


@dataclass(frozen=True)
class Ramp:
    """From one value at step ``begin`` to another at step ``end``, constant before and after.

    Raises ValueError unless ``begin`` is before ``end``, and not before 0.
    """

    begin: int
    end: int
    curve: Curve = cubic

    def __post_init__(self) -> None:
        if not 0 <= self.begin < self.end:
            raise ValueError(f"a ramp from step {self.begin} to step {self.end} has no length")

    def at(self, step: int, first: Fraction, last: Fraction) -> Fraction:
        """The value that the given optimizer step is taken with; steps count from 0."""
        done = Fraction(min(max(step - self.begin, 0), self.end - self.begin), self.end - self.begin)
        return first + (last - first) * self.curve(done)


def between_warm_ups(steps: int, warmup: int, before: float, after: float, curve: Curve = cubic) -> Ramp:
    """The ramp of a run: it begins ``before`` and ends ``after`` times ``warmup`` steps from the run's ends.

    Raises ValueError if that leaves no step between them.
    """
    begin, end = round(before * warmup), steps - round(after * warmup)
    if begin >= end:
        raise ValueError(
            f"a run of {steps} steps has no room for the ramp of the density between {begin} steps at its "
            f"beginning and {steps - end} at its end ({before:g} and {after:g} times {warmup} warm-up steps)"
        )
    return Ramp(begin, end, curve)
