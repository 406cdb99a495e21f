"""Progress of a run in words: round, step, loss, metric and remaining time."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

from torch import nn

Judge = Callable[[nn.Module, int | None, int], float]


class RunStatus:
    """The current state of a run, updated by its loop and its training.

    Args:
        rounds: Number of rounds.
        metric: Name of the metric; None if it has no name.
    """

    def __init__(self, rounds: int, metric: str | None = None) -> None:
        self._rounds = rounds
        self._name = metric or "metric"
        self._title = self._phase = ""
        self._later_rounds = 0
        self._loss: float | None = None
        self._metric: float | None = None
        self._judged = 0
        self._began = time.perf_counter()
        # Step at which the training of this session began, current step and last step; None outside training.
        self._steps: tuple[int, int, int] | None = None

    def begin_round(self, number: int, title: str) -> None:
        """Note the start of a round, counted from 0."""
        self._title, self._later_rounds, self._loss = title, self._rounds - number - 1, None

    def begin_phase(self, phase: str) -> None:
        """Note the start of a part of a round, such as "evaluating"."""
        self._phase, self._steps, self._judged, self._began = phase, None, 0, time.perf_counter()

    def begin_training(self, step: int, steps: int) -> None:
        """Note the start of the training at a step, and its last step."""
        self.begin_phase("training")
        self._steps = step, step, steps

    def note_step(self, step: int) -> None:
        """Note the end of an optimizer step."""
        if self._steps is not None:
            self._steps = self._steps[0], step, self._steps[2]

    def note_loss(self, loss: float) -> None:
        """Note a logged training loss."""
        self._loss = loss

    def note_metric(self, metric: float) -> None:
        """Note a value of the metric."""
        self._metric = metric

    def noting(self, judge: Judge | None) -> Judge | None:
        """Return the judge of an experiment with a note of each of its metrics; None if there is none."""
        if judge is None:
            return None

        def noted(model: nn.Module, examples: int | None, seed: int) -> float:
            metric = judge(model, examples, seed)
            self._judged += 1
            self.note_metric(metric)
            return metric

        return noted

    def line(self) -> str:
        """Return the state in one line; empty before the first round."""
        if not self._title:
            return ""
        parts, seconds = [], time.perf_counter() - self._began
        if self._steps is None:
            parts.append(f"{self._phase} for {duration_text(seconds)}")
            parts += [f"{self._judged} evaluations"] if self._judged else []
        else:
            first, step, last = self._steps
            parts.append(f"step {step} of {last}")
            parts += [f"loss {self._loss:.4f}"] if self._loss is not None else []
        parts += [f"last {self._name} {self._metric:.4f}"] if self._metric is not None else []
        if self._steps is not None and step > first:
            a_step = seconds / (step - first)
            parts.append(f"{duration_text(a_step * (last - step))} left")
            if self._later_rounds:
                rest = a_step * (last - step + self._later_rounds * last)
                parts.append(f"{duration_text(rest)} with the later rounds")
        return f"{self._title}: {', '.join(parts)}"

    def round_line(
        self,
        title: str,
        steps: int,
        loss: float | None,
        metrics: Mapping[str, float],
        seconds: float,
        mean_seconds: float,
    ) -> str:
        """Return a line about a round at its end.

        Args:
            title: Its title.
            steps: Its optimizer steps.
            loss: Its last logged loss.
            metrics: Its metrics on the validation data; may be empty.
            seconds: Its duration.
            mean_seconds: Mean duration of the rounds so far, by which the remaining time is estimated.
        """
        parts = [f"step {steps} of {steps}"]
        parts += [f"loss {loss:.4f}"] if loss is not None else []
        if metrics:
            name = self._name if self._name in metrics else next(iter(metrics))
            self.note_metric(metrics[name])
            parts.append(f"{name} {metrics[name]:.4f}")
        parts.append(f"done in {duration_text(seconds)}")
        if self._later_rounds:
            parts.append(f"about {duration_text(mean_seconds * self._later_rounds)} left")
        return f"{title}: {', '.join(parts)}"


def duration_text(seconds: float) -> str:
    """Return ``40 s``, ``12 min`` or ``3.5 h``."""
    if seconds < 99.5:
        return f"{seconds:.0f} s"
    if seconds < 99.5 * 60:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"
