"""The training of one round with Hugging Face's Trainer."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import load_file

from sparsebert.atomic import disk_errors
from sparsebert.lottery.experiment import Experiment, RunConfig
from sparsebert.lottery.method import LotteryMethod, Rewind
from sparsebert.lottery.round_hooks import RoundHooks
from sparsebert.lottery.round_start import RoundStart, weights_in
from sparsebert.mask_learning.learner import Learner
from sparsebert.tickets.ticket import Ticket
from sparsebert.training.best_masks import BestMasks
from sparsebert.training.callbacks import CheckpointCallback, ProgressCallback, StartCallback
from sparsebert.training.checkpoint import Checkpoint, checkpoint_bytes
from sparsebert.training.distillation import Distiller
from sparsebert.training.gradient_checkpointing import enable_gradient_checkpointing
from sparsebert.training.run_status import RunStatus
from sparsebert.training.trainer import TicketTrainer, optimizer_of, training_arguments


@dataclass(frozen=True)
class Trained:
    """The outcome of a round's training.

    Attributes:
        seconds: Training time over all sessions.
        loss: Last logged training loss; None if none was logged.
        steps: Last optimizer step.
    """

    seconds: float
    loss: float | None
    steps: int


def train_round(
    experiment: Experiment,
    config: RunConfig,
    ticket: Ticket | Learner,
    start: RoundStart,
    *,
    folder: Path,
    keep: Path | None,
    title: str,
    status: RunStatus | None = None,
    hooks: RoundHooks | None = None,
    best_masks: BestMasks | None = None,
    on_checkpoint: Callable[[], object] = lambda: None,
) -> Trained:
    """Train the model with a ticket, or learn one, to the end of the round.

    Args:
        experiment: Model and data.
        config: Configuration of the run.
        ticket: Ticket to train with, or the learner of one.
        start: Where the training starts and stops.
        folder: Folder of the round's checkpoints.
        keep: Folder in which the first round keeps the state at the method's ``rewind_step``; else None.
        title: Title of the progress bar.
        status: Status of the run, to update.
        hooks: The method's part in the training, which may end the round before its last step.
        best_masks: Evaluates a learner's masks during training.
        on_checkpoint: Called on rank 0 before each checkpoint is complete.

    Raises:
        OSError: A checkpoint cannot be written.
        ValueError: The last logged loss is NaN or infinite.
    """
    model, checkpoint = experiment.model, start.checkpoint
    stop = hooks.stopped if hooks and hooks.stopped is not None else start.stop
    if checkpoint is not None and checkpoint.step == stop:
        # An earlier process was killed after the last step: no training remains.
        return _restore_trained_(model, ticket, checkpoint, hooks)
    checkpoints = _checkpoint_callback(config.method, start, keep, on_checkpoint)
    callbacks: list[Any] = [checkpoints, ProgressCallback(title, status)]
    callbacks += [hooks.callback] if hooks else []
    callbacks += [best_masks] if best_masks is not None else []
    callbacks += [StartCallback(start.weights)] if start.weights is not None else []
    if config.training.gradient_checkpointing:
        enable_gradient_checkpointing(model)
    trainer = TicketTrainer(
        model=model,
        args=training_arguments(config.training, folder, start.stop, start.schedule),
        optimizer_cls_and_kwargs=optimizer_of(config.training),
        train_dataset=experiment.train,
        data_collator=experiment.collate,
        callbacks=callbacks,
        ticket=ticket if isinstance(ticket, Ticket) else None,
        learner=ticket if isinstance(ticket, Learner) else None,
        distiller=_distiller(experiment, config),
        penalties=[hooks.penalty] if hooks else [],
        tell_examples=hooks.tell_examples if hooks else None,
        schedule_steps=start.schedule,
        group_by_length=config.training.group_by_length,
    )
    with disk_errors(folder, checkpoint_bytes(model)):
        trainer.train(resume_from_checkpoint=str(checkpoint.path) if checkpoint else None)
    _unwrap_(model)
    return Trained(checkpoints.seconds, _last_loss(trainer.state.log_history), trainer.state.global_step)


def _restore_trained_(
    model: Any, ticket: Ticket | Learner, checkpoint: Checkpoint, hooks: RoundHooks | None
) -> Trained:
    """Restore the state at the end of a round's training from its last checkpoint."""
    weights_in(checkpoint, model).restore_(model)
    if isinstance(ticket, Learner):
        ticket.load_(checkpoint.path / "model.safetensors")
    if hooks:
        saved = load_file(checkpoint.path / "model.safetensors")
        model.load_state_dict({name: saved[name] for name in hooks.names}, strict=False)
    history = json.loads((checkpoint.path / "trainer_state.json").read_text())["log_history"]
    return Trained(checkpoint.seconds, _last_loss(history), checkpoint.step)


def _checkpoint_callback(
    method: LotteryMethod, start: RoundStart, keep: Path | None, on_checkpoint: Callable[[], object]
) -> CheckpointCallback:
    callback = CheckpointCallback(start.checkpoint.seconds if start.checkpoint else 0.0, on_checkpoint)
    if keep is not None and method.rewind is Rewind.STEP:
        callback.keep(method.rewind_step, keep)
    if method.rewind is Rewind.NONE:
        callback.save_at(start.stop)
    return callback


def _distiller(experiment: Experiment, config: RunConfig) -> Distiller | None:
    if config.distillation is None:
        return None
    assert experiment.teacher is not None
    return Distiller(experiment.teacher, config.distillation)


def _unwrap_(model: Any) -> None:
    """Remove accelerate's wrapper for mixed precision from the model.

    If the wrapper stayed, the evaluation would run in mixed precision, and the next round, whose model would
    not be wrapped again, in full precision. accelerate's unwrapping also removes transformers' decorators.
    """
    for name in ("forward", "_original_forward", "_is_accelerate_prepared"):
        vars(model).pop(name, None)


def _last_loss(history: list[dict[str, float]]) -> float | None:
    """Return the last logged loss, if there is one. Raises ValueError if it is NaN or infinite."""
    losses = [entry["loss"] for entry in history if "loss" in entry]
    if not losses:
        return None
    if not math.isfinite(losses[-1]):
        raise ValueError(f"the training loss is {losses[-1]:g}: training diverged; lower the learning rates")
    return float(losses[-1])
