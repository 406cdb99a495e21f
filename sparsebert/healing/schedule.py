"""Steps and learning rates that fill a budget of minutes or of steps."""

from __future__ import annotations

import time

# Share of the steps in which the learning rate rises.
WARMUP = 0.05
# Weight of the newest step in the running mean of step times.
_NEWEST = 0.1


def warmed_and_decayed(progress: float) -> float:
    """Return the factor of the peak learning rate: a linear rise, then a linear fall to 0.

    Args:
        progress: Share of the steps that are done, in [0, 1].
    """
    return min(progress / WARMUP, (1 - progress) / (1 - WARMUP))


class Budget:
    """The remaining time or the remaining steps.

    Steps advance the progress by equal parts of the rest. With minutes, the number of remaining steps
    follows from the measured time of a step, so that the end of the schedule meets the end of the budget even
    where the machine slows down. With steps, the same steps always give the same result.

    Args:
        seconds: Wall time to fill, in all sessions together; None with ``steps``.
        steps: Optimizer steps to take; None with ``seconds``.
        began: When this session began, as ``time.perf_counter`` counts.
        spent: Seconds that earlier sessions took.
    """

    def __init__(
        self,
        seconds: float | None,
        steps: int | None,
        *,
        began: float,
        spent: float = 0.0,
    ) -> None:
        self._seconds, self._steps = seconds, steps
        self._began = began - spent
        self._step_seconds: float | None = None

    @property
    def spent(self) -> float:
        """Seconds so far, over all sessions."""
        return time.perf_counter() - self._began

    def note_step(self, seconds: float) -> None:
        """Note the time of a step."""
        mean = self._step_seconds
        self._step_seconds = seconds if mean is None else mean + _NEWEST * (seconds - mean)

    def steps_left(self, done: int, reserve: float = 0.0) -> int:
        """Return the number of remaining optimizer steps.

        Args:
            done: Steps taken.
            reserve: Seconds to leave for other work than steps.
        """
        if self._steps is not None:
            return max(self._steps - done, 0)
        assert self._seconds is not None
        left = self._seconds - self.spent - reserve
        return max(int(left / max(self._step_seconds or left, 1e-9)), 0)

    def seconds_left(self, done: int) -> float:
        """Return the remaining seconds, an estimate if the budget counts steps."""
        if self._seconds is not None:
            return max(self._seconds - self.spent, 0.0)
        return self.steps_left(done) * (self._step_seconds or 0.0)
