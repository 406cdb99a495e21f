"""Callbacks of the Trainer: masks, learned masks, exact starts, complete checkpoints, progress."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tqdm import tqdm
from transformers import TrainerCallback

from sparsebert.mask_learning.learner import Learner
from sparsebert.tickets.ticket import Ticket
from sparsebert.training import distributed
from sparsebert.training.checkpoint import Checkpoint
from sparsebert.training.mask_enforcer import MaskEnforcer
from sparsebert.training.run_status import RunStatus
from sparsebert.training.snapshot import Snapshot


class MaskCallback(TrainerCallback):
    """Keeps a ticket's pruned weights at zero, from before the first step and also after a resume."""

    def __init__(self, ticket: Ticket) -> None:
        self.ticket = ticket
        self._enforcer: MaskEnforcer | None = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **now: Any) -> None:
        self._enforcer = MaskEnforcer(now["model"], self.ticket)
        self._enforcer.zero_(now["optimizer"])

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **now: Any) -> None:
        assert self._enforcer is not None
        self._enforcer.zero_()

    def on_train_end(self, args: Any, state: Any, control: Any, **now: Any) -> None:
        assert self._enforcer is not None
        self._enforcer.close()


class LearnCallback(TrainerCallback):
    """Sets the masks of each optimizer step before its first batch, so all accumulated batches share them."""

    def __init__(self, learner: Learner) -> None:
        self._learner = learner

    def on_step_begin(self, args: Any, state: Any, control: Any, **now: Any) -> None:
        self._learner.derive_(state.global_step)


class StartCallback(TrainerCallback):
    """Raises RuntimeError unless training starts from exactly these weights, checked before masks apply."""

    def __init__(self, weights: Snapshot) -> None:
        self._weights = weights

    def on_train_begin(self, args: Any, state: Any, control: Any, **now: Any) -> None:
        self._weights.require_equal(now["model"])


class CheckpointCallback(TrainerCallback):
    """Marks each checkpoint once it is complete, and requests additional ones.

    Losses are logged with every checkpoint, because a resumed Trainer loses the losses that were not logged.

    Args:
        seconds: Training time of the round in earlier sessions.
        on_checkpoint: Called on rank 0 before each checkpoint is complete.
    """

    def __init__(self, seconds: float = 0.0, on_checkpoint: Callable[[], object] = lambda: None) -> None:
        self._before, self._on_checkpoint = seconds, on_checkpoint
        self._start = time.perf_counter()
        self._requested: set[int] = set()
        self._kept: dict[int, Path] = {}

    @property
    def seconds(self) -> float:
        """Training time of the round so far, over all sessions."""
        return self._before + time.perf_counter() - self._start

    def save_at(self, step: int) -> None:
        """Request a checkpoint after this step."""
        self._requested.add(step)

    def keep(self, step: int, folder: Path) -> None:
        """Request a checkpoint after this step, and copy it into a folder where it is not deleted."""
        self.save_at(step)
        self._kept[step] = folder

    def on_train_begin(self, args: Any, state: Any, control: Any, **now: Any) -> None:
        self._start = time.perf_counter()

    def on_step_end(self, args: Any, state: Any, control: Any, **now: Any) -> Any:
        if state.global_step in self._requested:
            control.should_save = True
        if control.should_save:
            control.should_log = True
        return control

    def on_save(self, args: Any, state: Any, control: Any, **now: Any) -> None:
        distributed.wait()  # each process writes its random state into the checkpoint
        if distributed.is_main():
            step = state.global_step
            saved = Checkpoint(Path(args.output_dir) / f"checkpoint-{step}", step, self.seconds)
            if step in self._kept:
                # The copy precedes the mark: a run that resumes from the checkpoint relies on it.
                saved.copy_to(self._kept[step] / saved.path.name, seconds=0.0)
            self._on_checkpoint()
            saved.mark()
        distributed.wait()


class ProgressCallback(TrainerCallback):
    """Updates the status, and shows a bar with title, loss and remaining time if stderr is a terminal."""

    def __init__(self, title: str, status: RunStatus | None = None) -> None:
        self._title = title
        self._status = status
        self._bar: Any = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **now: Any) -> None:
        disable = None if distributed.is_main() else True
        total, done = state.max_steps, state.global_step
        self._bar = tqdm(
            total=total, initial=done, desc=self._title, unit="step", disable=disable, leave=False
        )
        if self._status is not None:
            self._status.begin_training(done, total)

    def on_step_end(self, args: Any, state: Any, control: Any, **now: Any) -> None:
        self._bar.update()
        if self._status is not None:
            self._status.note_step(state.global_step)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float], **now: Any) -> None:
        if "loss" in logs:
            self._bar.set_postfix(loss=f"{float(logs['loss']):.4f}", refresh=False)
            if self._status is not None:
                self._status.note_loss(float(logs["loss"]))

    def on_train_end(self, args: Any, state: Any, control: Any, **now: Any) -> None:
        self._bar.close()
