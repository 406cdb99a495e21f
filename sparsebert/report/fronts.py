"""Pareto fronts of the forms of a model: quality against measured speed and against bytes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

# Series of the form that speed-ups relate to.
DENSE = "dense"


@dataclass(frozen=True)
class Form:
    """A form of a model, such as a ticket in the format it runs in.

    Attributes:
        series: Method or library.
        name: Name of this form: ``IMP 90%``.
        quality: Mean quality over seeds, in the unit of the front.
        deviation: Standard deviation over seeds (n - 1); None for one seed.
        seeds: Number of seeds.
        speed: Speed-up over the reference, the median of paired rounds; 1 for the reference itself.
        speed_range: p20 and p80 of the speed-up.
        model_bytes: Bytes of the model in memory; None if the library does not report them.
        busy: Whether the machine was busy while the speed was measured.
    """

    series: str
    name: str
    quality: float
    deviation: float | None
    seeds: int
    speed: float
    speed_range: tuple[float, float]
    model_bytes: int | None
    busy: bool = False

    @property
    def digits(self) -> int:
        """Decimals with which the quality is shown: of per cent one, of cosines and the like four."""
        return 1 if self.quality > 1.5 else 4

    @property
    def shown_quality(self) -> float:
        """The quality as it is shown, by which fronts compare."""
        return round(self.quality, self.digits)


@dataclass(frozen=True)
class Front:
    """The forms of one model, all judged alike and timed on one machine with one workload.

    Its Pareto fronts compare figures as far as they tell forms apart: quality as it is shown, speed and
    bytes with two significant digits, since paired medians scatter by a few per cent.

    Attributes:
        title: Model and task.
        quality: Name of the quality, with its unit: ``accuracy (%)``.
        reference: Name of the dense form that speed-ups relate to.
        forms: The forms; the dense one, if its quality is known, is the first and of the series ``DENSE``.
        machine: Machine and versions of the speeds.
        about: Workload, seeds and versions of the training.
        holes: Why forms are missing, in sentences.
        chance: Quality of guessing, if known.
    """

    title: str
    quality: str
    reference: str
    forms: tuple[Form, ...]
    machine: str
    about: str
    holes: tuple[str, ...] = ()
    chance: float | None = None

    @property
    def fastest(self) -> list[Form]:
        """The Pareto front of quality and speed, from the slowest to the fastest."""
        kept = pareto([(form.shown_quality, _rounded(form.speed)) for form in self.forms])
        return sorted((self.forms[index] for index in kept), key=lambda form: form.speed)

    @property
    def smallest(self) -> list[Form]:
        """The Pareto front of quality and bytes, from the smallest to the largest."""
        sized = [form for form in self.forms if form.model_bytes is not None]
        kept = pareto([(form.shown_quality, -_rounded(form.model_bytes or 0)) for form in sized])
        return sorted((sized[index] for index in kept), key=lambda form: form.model_bytes or 0)

    @property
    def unsized(self) -> list[Form]:
        """Forms whose bytes are unknown."""
        return [form for form in self.forms if form.model_bytes is None]


def pareto(values: Sequence[tuple[float, float]]) -> list[int]:
    """Return the indices of the pairs that no other pair exceeds in one value and reaches in the other.

    Args:
        values: Pairs of figures of which higher ones are better; equal pairs are all kept.
    """
    return [
        index
        for index, (first, second) in enumerate(values)
        if not any(
            one >= first and other >= second and (one, other) != (first, second) for one, other in values
        )
    ]


def _rounded(value: float) -> float:
    return float(f"{value:.2g}")
