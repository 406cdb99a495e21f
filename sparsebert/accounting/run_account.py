"""The account of one command: what it used, and the fingerprints of what it read."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sparsebert.accounting.energy import open_counters
from sparsebert.accounting.fingerprints import (
    Fingerprints,
    digest_of_examples,
    digest_of_model,
    digest_of_tokenizer,
)
from sparsebert.accounting.meter import Meter


@dataclass
class RunAccount:
    """Collects two fields of a command's record, ``resources`` and ``fingerprints``.

    Attributes:
        carbon_intensity: Grams of CO2 per kWh, as the user gives it; None without carbon.
        gpu: Whether the command computes on a GPU.
        fingerprints: Fingerprints by name: "model", "tokenizer", and those of data.
    """

    carbon_intensity: float | None = None
    gpu: bool = False
    fingerprints: Fingerprints = field(default_factory=dict)
    _meter: Meter | None = field(default=None, init=False)

    def metered(self, output: Path | None = None, *, unfinished: Sequence[Path] = ()) -> Meter:
        """Return the meter of the command, to be entered for its work.

        Args:
            output: What the command writes; the usage of a command that is killed is in a file beside it.
            unfinished: Files from which a command that was killed goes on: if none exists, it starts over.
        """
        saved = None if output is None else output.with_name(f"{output.name}.usage.json")
        self._meter = Meter(
            gpu=self.gpu, saved=saved, resumable=lambda: any(path.exists() for path in unfinished)
        )
        return self._meter

    def identify(
        self, *, model: Any = None, teacher: Any = None, tokenizer: Any = None, **data: Iterable[Any] | None
    ) -> None:
        """Take the fingerprints of models, a tokenizer and examples, as far as they are given."""
        digests: dict[str, tuple[Callable[[Any], str], Any]] = {
            "model": (digest_of_model, model),
            "teacher": (digest_of_model, teacher),
            "tokenizer": (digest_of_tokenizer, tokenizer),
            **{name: (digest_of_examples, examples) for name, examples in data.items()},
        }
        self.fingerprints |= {
            name: digest(value) for name, (digest, value) in digests.items() if value is not None
        }

    def require_energy(self, option: str) -> None:
        """Raise ValueError, with the option's name, if carbon is wanted and no energy counter can be read."""
        if self.carbon_intensity is None:
            return
        if not 0 <= self.carbon_intensity < math.inf:
            raise ValueError(
                f"{option} must be a number of grams per kWh, at least 0, got {self.carbon_intensity:g}"
            )
        counters, reasons = open_counters(gpu=self.gpu)
        if not counters:
            raise ValueError(
                f"{option} {self.carbon_intensity:g} needs measured energy, and there is none here: "
                f"{'; '.join(reasons.values())}; omit the option"
            )

    def record(self) -> dict[str, Any]:
        """Return the two fields of the record."""
        return {"resources": self.resources(), "fingerprints": dict(self.fingerprints)}

    def resources(self) -> dict[str, Any] | None:
        """Return the field ``resources``; None before the work was metered."""
        return None if self._meter is None else self._meter.usage().record(self.carbon_intensity)
