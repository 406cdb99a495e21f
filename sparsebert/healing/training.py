"""The training of a healing: search for a learning rate, schedule, held-out losses, checkpoints."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sparsebert.healing.checkpoint import Checkpoint
from sparsebert.healing.schedule import Budget, warmed_and_decayed
from sparsebert.healing.settings import HealingSettings
from sparsebert.healing.student import Student
from sparsebert.healing.targets import Reader, TargetCache
from sparsebert.healing.texts import HealingTexts, batches_of_one_length, inputs_of, training_steps
from sparsebert.training.run_status import duration_text

# The first learning rate to try, also where the budget is too small to try any; each next one is twice or
# half as high. Every trial takes this share of the budget.
FIRST_RATE, _FACTOR = 2e-3, 2.0
MOST_TRIALS = 6
_TRIAL_SHARE = 0.015
_LEAST_TRIAL_STEPS, MOST_SHARE_OF_TRIALS = 4, 0.15
# Share of the budget between two looks at the validation texts.
_LOOK_EVERY = 0.1
# A run that leaves the model this much worse than the start goes back to its best state, more slowly.
_DIVERGED, _SLOWER = 2.0, 1 / 3
# Seconds between checkpoints, at least, and share of the time that may go into writing them.
CHECKPOINT_SECONDS, CHECKPOINT_SHARE = 60.0, 0.02
_WEIGHTS, _BEST = "weights.", "best."


@dataclass
class State:
    """Where the training is.

    Attributes:
        rate: Peak learning rate.
        trials: Learning rates that were tried, with the loss on the validation texts after each; None if it
            was not finite.
        loss_before: Loss on the validation texts at the start.
        best_loss: Loss of the best weights on the validation texts.
        best_step: Step of the best weights; 0 for the start.
        step: Optimizer steps taken.
        tokens: Tokens trained on.
        share: Share of the schedule that is done.
        looked_at: Share at the last look at the validation texts.
    """

    rate: float
    trials: list[tuple[float, float | None]]
    loss_before: float
    best_loss: float
    best_step: int = 0
    step: int = 0
    tokens: int = 0
    share: float = 0.0
    looked_at: float = 0.0


class _HeldOut(NamedTuple):
    """Mean losses of the validation texts: with the hidden states, and of the outputs alone."""

    loss: float
    outputs: float


class Healer:
    """Trains a student to reproduce the dense model's outputs within a budget.

    Args:
        student: The model in training.
        read: Reads the targets of student and teacher.
        rows: The texts.
        train_targets: The dense model's outputs for the texts to train on.
        held_out_targets: The dense model's outputs for the validation texts, then the judge's.
        settings: The settings.
        budget: The budget, which has begun.
        progress: Called with a line about the current step.
    """

    def __init__(
        self,
        student: Student,
        read: Reader,
        rows: HealingTexts,
        *,
        train_targets: TargetCache,
        held_out_targets: TargetCache,
        settings: HealingSettings,
        budget: Budget,
        progress: Callable[[str], object],
    ) -> None:
        self._student, self._read, self._rows = student, read, rows
        self._train_targets, self._held_out_targets = train_targets, held_out_targets
        self._settings, self._budget, self._say = settings, budget, progress
        self._look_seconds = math.inf
        # Losses of the start: nothing that is kept is worse.
        self._start = self._held_out()

    def agreement(self) -> float:
        """Return the mean agreement with the dense model on the texts that neither train nor choose."""
        rows, total = self._rows.judge, 0.0
        with torch.no_grad():
            for texts in batches_of_one_length(rows, self._settings.tokens):
                inputs = inputs_of(rows, texts, self._student.device)
                target = self._held_out_targets([len(self._rows.validation) + text for text in texts], inputs)
                total += float(self._read.agreement(self._read(self._student.model, inputs), target).sum())
        return total / len(rows)

    def search(self) -> State:
        """Choose the learning rate, and leave the student as it was.

        Rates are tried upwards from the first, or downwards where the second is worse, until one is worse
        than the one before it. Each gets the same few steps, with a schedule of their own, and is judged by
        the validation texts. A budget of few steps goes into the training alone.
        """
        before = self._start.loss
        if self._settings.learning_rate is not None:
            return State(self._settings.learning_rate, [], before, before)
        steps = self._trial_steps()
        if steps is None:
            return State(FIRST_RATE, [], before, before)
        start = self._student.weights()
        losses: dict[float, float] = {}

        def is_better(rate: float, than: float) -> bool:
            if len(losses) >= MOST_TRIALS:
                return False
            losses[rate] = self._trial(rate, steps, start)
            return losses[rate] < losses[than]

        losses[FIRST_RATE] = self._trial(FIRST_RATE, steps, start)
        for factor in (_FACTOR, 1 / _FACTOR):
            rate = FIRST_RATE
            while is_better(rate * factor, rate):
                rate *= factor
            if rate != FIRST_RATE:
                break
        best = min(losses, key=losses.__getitem__)
        trials = [(rate, loss if math.isfinite(loss) else None) for rate, loss in losses.items()]
        return State(best, trials, before, before)

    def train(self, state: State, best: dict[str, Tensor], saving: Saving | None) -> dict[str, Tensor]:
        """Train to the end of the budget.

        Args:
            state: Where the training is; updated.
            best: The best weights so far.
            saving: Where checkpoints go; None for none.

        Returns:
            The best weights, by the validation texts.
        """
        order = training_steps(self._rows.train, self._settings.tokens, self._settings.seed)
        for batches in itertools.islice(order, state.step, None):
            # The last look at the validation texts and the judge's take time too.
            left = self._budget.steps_left(state.step, reserve=2 * self._look_seconds)
            if left == 0:
                break
            share = (1 - state.share) / left
            loss = self._take_step(batches, state.rate * warmed_and_decayed(state.share + share / 2))
            state.step += 1
            state.share += share
            state.tokens += sum(len(texts) * len(self._rows.train[texts[0]]) for texts in batches)
            if left == 1 or state.share - state.looked_at >= _LOOK_EVERY or not math.isfinite(loss):
                best = self._look(state, best)
            self._say(self._line(state, left - 1))
            if saving is not None and saving.is_due:
                saving.save(self._student, state, best, self._budget.spent)
        if state.looked_at < state.share:
            best = self._look(state, best)
        return best

    def _trial_steps(self) -> int | None:
        """Return the steps of a trial; None if trials would take too much of the budget."""
        start = self._student.weights()
        order = training_steps(self._rows.train, self._settings.tokens, self._settings.seed)
        # The first steps are slower than the rest.
        for batches in itertools.islice(order, 3):
            self._take_step(batches, 0.0)
        self._student.set_weights(start)
        self._student.begin()
        left = self._budget.steps_left(0)
        steps = max(round(_TRIAL_SHARE * left), _LEAST_TRIAL_STEPS)
        return steps if MOST_TRIALS * steps <= MOST_SHARE_OF_TRIALS * left else None

    def _trial(self, rate: float, steps: int, start: dict[str, Tensor]) -> float:
        """Return the loss of the validation texts after a few steps from the start; infinity for NaN."""
        self._say(f"learning rate {rate:g}: {steps} steps")
        order = training_steps(self._rows.train, self._settings.tokens, self._settings.seed)
        for step, batches in enumerate(itertools.islice(order, steps)):
            self._take_step(batches, rate * warmed_and_decayed((step + 0.5) / steps))
        loss = self._held_out().loss
        self._student.set_weights(start)
        self._student.begin()
        return loss if math.isfinite(loss) else math.inf

    def _take_step(self, batches: Sequence[Sequence[int]], learning_rate: float) -> float:
        """Take an optimizer step; return its loss, the mean over tokens."""
        began = time.perf_counter()
        rows, total = self._rows.train, 0.0
        tokens = sum(len(texts) * len(rows[texts[0]]) for texts in batches)
        for texts in batches:
            inputs = inputs_of(rows, texts, self._student.device)
            target = self._train_targets(texts, inputs)
            share = len(texts) * len(rows[texts[0]]) / tokens
            loss = self._read.loss(self._read(self._student.model, inputs), target) * share
            loss.backward()
            total += float(loss.detach())
        self._student.step(learning_rate)
        self._budget.note_step(time.perf_counter() - began)
        return total

    def _held_out(self) -> _HeldOut:
        """Return the mean losses of the validation texts."""
        began = time.perf_counter()
        rows, loss, outputs = self._rows.validation, 0.0, 0.0
        with torch.no_grad():
            for texts in batches_of_one_length(rows, self._settings.tokens):
                inputs = inputs_of(rows, texts, self._student.device)
                target = self._held_out_targets(texts, inputs)
                output = self._read(self._student.model, inputs)
                loss += float(self._read.loss(output, target)) * len(texts)
                outputs += float(self._read.output_loss(output, target)) * len(texts)
        self._look_seconds = min(self._look_seconds, time.perf_counter() - began)
        return _HeldOut(loss / len(rows), outputs / len(rows))

    def _look(self, state: State, best: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return the better of the best weights and those of now, by the validation texts.

        Weights are better if their loss is lower, and their outputs no farther from the dense model's than
        those of the start.
        """
        loss, outputs = self._held_out()
        state.looked_at = state.share
        if loss < state.best_loss and outputs <= self._start.outputs:
            state.best_loss, state.best_step = loss, state.step
            return self._student.weights()
        if not loss < _DIVERGED * state.loss_before:
            self._student.set_weights(best)
            self._student.begin()
            state.rate *= _SLOWER
            self._say(f"diverged at step {state.step}: back to step {state.best_step}, rate {state.rate:.2g}")
        return best

    def _line(self, state: State, left: int) -> str:
        held_out = f"held-out loss {state.best_loss:.4f} (before {state.loss_before:.4f})"
        time_left = duration_text(self._budget.seconds_left(state.step))
        return f"healing: step {state.step} of {state.step + left}, {held_out}, {time_left} left"


class Saving:
    """Checkpoints of a training: when they are due, and what they hold.

    Args:
        path: Their file.
        identity: What they belong to.
    """

    def __init__(self, path: Path, identity: Mapping[str, Any]) -> None:
        self._path, self._identity = path, identity
        # Due at once: the search for a learning rate must not be lost.
        self._next = 0.0

    @property
    def is_due(self) -> bool:
        """Whether a checkpoint is due."""
        return time.monotonic() >= self._next

    def save(self, student: Student, state: State, best: Mapping[str, Tensor], seconds: float) -> None:
        """Write a checkpoint.

        Args:
            student: The model in training.
            state: Where its training is.
            best: The best weights so far.
            seconds: Time spent so far.
        """
        began = time.monotonic()
        tensors = {f"{_WEIGHTS}{name}": tensor for name, tensor in student.weights().items()}
        tensors |= student.moments()
        if state.best_step:
            tensors |= {f"{_BEST}{name}": tensor for name, tensor in best.items()}
        Checkpoint(self._identity, {**asdict(state), "seconds": seconds}, tensors).save(self._path)
        wait = max(CHECKPOINT_SECONDS, (time.monotonic() - began) / CHECKPOINT_SHARE)
        self._next = time.monotonic() + wait


def restored(saved: Checkpoint, student: Student) -> tuple[State, dict[str, Tensor]]:
    """Bring a student to the state of a checkpoint.

    Returns:
        Where the training is, and the best weights so far.
    """
    best = student.weights()
    state = State(**{each.name: saved.numbers[each.name] for each in fields(State)})
    state.trials = [(rate, loss) for rate, loss in state.trials]
    if state.best_step:
        best = _below(_BEST, saved.tensors)
    student.set_weights(_below(_WEIGHTS, saved.tensors))
    student.set_moments(dict(saved.tensors))
    return state, best


def _below(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): each for name, each in tensors.items() if name.startswith(prefix)}
