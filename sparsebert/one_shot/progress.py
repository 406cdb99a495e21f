"""Progress of one-shot pruning: the share of the work that is done, and the time that the rest takes."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

# The steps of a run.
ALLOCATE, GRADIENTS, PRUNE = "allocate", "gradients", "prune"

# A part of the work: its step, and what it is about, such as the key of a matrix.
Part = tuple[str, str]


@dataclass(frozen=True)
class Report:
    """A part of the work that was just finished.

    Attributes:
        step: "allocate" where a matrix was measured for its share of the sparsity, "gradients" for those of a
            batch, "prune" for a matrix that is pruned.
        key: Key of the matrix; of gradients, the number of the batch.
        done: Share of the whole work that is done.
        seconds_left: Estimate of the time that the rest takes.
        error: Share of a pruned matrix' outputs that is lost on the calibration data, as energy.
        sparsity: Share of its weights that are pruned.
    """

    step: str
    key: str
    done: float
    seconds_left: float
    error: float | None = None
    sparsity: float | None = None

    def __str__(self) -> str:
        """Return a line of text, without the time."""
        if self.step == ALLOCATE:
            return f"{self.key}: measured for its share of the sparsity; {self.done:.0%} done"
        if self.step == GRADIENTS:
            return f"gradients of batch {self.key}; {self.done:.0%} done"
        return f"{self.key}: {self.error:.1%} of its outputs lost; {self.done:.0%} done"


Listener = Callable[[Report], None]


class ProgressReporter:
    """Reports each part of a run.

    The pace of the current step gives the time of the rest: costs compare parts of one step well, and steps
    with each other roughly.

    Args:
        costs: Work of each part, in any unit.
        listener: Called with a report of each part.
    """

    def __init__(self, costs: Mapping[Part, float], listener: Listener | None = None) -> None:
        self._costs = costs
        self._total = sum(costs.values())
        self._listener = listener
        self._done = 0.0
        self._step, self._done_before, self._began = "", 0.0, 0.0

    def skip(self, parts: Iterable[Part]) -> None:
        """Count parts as done that an earlier call has finished, or that turn out to be superfluous."""
        skipped = sum(self._costs.get(part, 0.0) for part in parts)
        self._done += skipped
        self._done_before += skipped

    def begin(self, step: str) -> None:
        """Measure the pace of a step from here."""
        self._step, self._done_before, self._began = step, self._done, time.monotonic()

    def finish(self, key: str, error: float | None = None, sparsity: float | None = None) -> None:
        """Count a part of the current step as done, and report it."""
        self._done += self._costs.get((self._step, key), 0.0)
        if self._listener is None:
            return
        covered = self._done - self._done_before
        pace = (time.monotonic() - self._began) / covered if covered else 0.0
        done = self._done / self._total if self._total else 1.0
        left = pace * max(self._total - self._done, 0.0)
        self._listener(Report(self._step, key, min(done, 1.0), left, error, sparsity))
