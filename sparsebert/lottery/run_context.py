"""The callbacks by which a run reports to its caller."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from sparsebert.lottery.experiment import RunConfig


@dataclass(frozen=True)
class RunContext:
    """Callbacks of a run.

    Attributes:
        say: Called with each line of progress.
        before: Called on rank 0 with the model and the run's configuration before the work starts, unless the
            run is already finished.
        environment: Description of the machine and its libraries for the records; None to record none.
        carbon_intensity: Grams of CO2 per kWh, by which the records give the carbon of the energy used; None
            without carbon.
    """

    say: Callable[[str], object] = lambda text: None
    before: Callable[[Any, RunConfig], object] = lambda model, config: None
    environment: Mapping[str, Any] | None = None
    carbon_intensity: float | None = None

    def of_run(self, name: str) -> RunContext:
        """Return the same callbacks; each line begins with the name of a run."""
        return replace(self, say=lambda text: self.say(f"{name}: {text}"))
