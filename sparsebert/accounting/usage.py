"""The time, memory and energy that a run used, and the sum over its parts."""

from __future__ import annotations

import functools
import operator
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

JOULES_PER_KWH = 3.6e6


@dataclass(frozen=True)
class Usage:
    """What a run, or a part of it, used.

    The sum of two is that of parts which ran one after the other: peaks are maxima.

    Attributes:
        wall_seconds: Time on the clock.
        cpu_seconds: CPU time of all threads of the process, and of the processes that it has waited for.
        cuda_seconds: Time between the first and the last event on the GPU's stream, by CUDA events; None
            without a GPU.
        peak_rss_bytes: Peak resident memory of the process; None where the system does not report it.
        peak_gpu_bytes: Peak memory that torch allocated on the GPUs; None without a GPU.
        process_peak: Whether ``peak_rss_bytes`` is that since the start of the process, because the system
            could not reset it at the start of the part.
        joules: Energy by domain: "package-0", "dram", "gpu-0", ...
        not_measured: Reasons why energy is missing, by device: "cpu", "gpu".
        resumed: How often the run went on after a kill.
    """

    wall_seconds: float = 0.0
    cpu_seconds: float = 0.0
    cuda_seconds: float | None = None
    peak_rss_bytes: int | None = None
    peak_gpu_bytes: int | None = None
    process_peak: bool = False
    joules: Mapping[str, float] = field(default_factory=dict)
    not_measured: Mapping[str, str] = field(default_factory=dict)
    resumed: int = 0

    def __add__(self, later: Usage) -> Usage:
        """Return the usage of this part and a later one together."""
        names = dict.fromkeys([*self.joules, *later.joules])
        return Usage(
            self.wall_seconds + later.wall_seconds,
            self.cpu_seconds + later.cpu_seconds,
            _combined(operator.add, self.cuda_seconds, later.cuda_seconds),
            _combined(max, self.peak_rss_bytes, later.peak_rss_bytes),
            _combined(max, self.peak_gpu_bytes, later.peak_gpu_bytes),
            self.process_peak or later.process_peak,
            {name: self.joules.get(name, 0.0) + later.joules.get(name, 0.0) for name in names},
            {**self.not_measured, **later.not_measured},
            self.resumed + later.resumed,
        )

    @property
    def energy(self) -> float | None:
        """Energy of all domains that were measured, in joules; None if none was."""
        return sum(self.joules.values()) if self.joules else None

    def record(self, carbon_intensity: float | None = None) -> dict[str, Any]:
        """Return the field ``resources`` of a record.

        Args:
            carbon_intensity: Grams of CO2 per kWh, as the user gives it; without it carbon is not computed.
        """
        energy, carbon = self.energy, None
        if carbon_intensity is not None and energy is not None:
            grams = energy / JOULES_PER_KWH * carbon_intensity
            carbon = {"grams_per_kwh": carbon_intensity, "grams": grams}
        return {
            "wall_seconds": round(self.wall_seconds, 3),
            "cpu_seconds": round(self.cpu_seconds, 3),
            "cuda_seconds": None if self.cuda_seconds is None else round(self.cuda_seconds, 3),
            "peak_rss_bytes": self.peak_rss_bytes,
            "peak_gpu_bytes": self.peak_gpu_bytes,
            "process_peak": self.process_peak,
            "energy": {
                "joules": None if energy is None else round(energy, 3),
                "domains": {name: round(value, 3) for name, value in self.joules.items()},
                "not_measured": dict(self.not_measured),
            },
            "carbon": carbon,
            "resumed": self.resumed,
        }

    @classmethod
    def of_record(cls, record: Mapping[str, Any]) -> Usage:
        """Return the usage in the field ``resources`` of a record.

        Raises:
            AttributeError, LookupError, TypeError: The field is damaged.
        """
        energy = record["energy"]
        return cls(
            float(record["wall_seconds"]),
            float(record["cpu_seconds"]),
            record["cuda_seconds"],
            record["peak_rss_bytes"],
            record["peak_gpu_bytes"],
            record["process_peak"],
            {name: float(joules) for name, joules in energy["domains"].items()},
            dict(energy["not_measured"]),
            record["resumed"],
        )


def total(records: Iterable[Mapping[str, Any] | None]) -> dict[str, Any] | None:
    """Return the sum of fields ``resources``; None if one of them is missing.

    Carbon is the sum too, under the intensity that all share; None if they differ.
    """
    resources = list(records)
    if not resources or not all(resources):
        return None
    present = [each for each in resources if each]
    intensities = {(each["carbon"] or {}).get("grams_per_kwh") for each in present}
    intensity = intensities.pop() if len(intensities) == 1 else None
    return functools.reduce(operator.add, map(Usage.of_record, present)).record(intensity)


def _combined(combine: Any, one: Any, other: Any) -> Any:
    """Combine two values, of which None stands for an unknown one."""
    if one is None or other is None:
        return other if one is None else one
    return combine(one, other)
