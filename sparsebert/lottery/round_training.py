"""One round of training through Hugging Face's Trainer."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file

from sparsebert.lottery.experiment import Experiment, RunConfig
from sparsebert.lottery.method import Rewind, RoundHooks
from sparsebert.lottery.round_start import RoundStart, weights_in
from sparsebert.mask_learning.learner import Learner
from sparsebert.tickets.ticket import Ticket
from sparsebert.training.best_masks import BestChoice
from sparsebert.training.distillation import Distiller
from sparsebert.training.trainer import (
    CheckpointCallback,
    ProgressCallback,
    StartCallback,
    TicketTrainer,
    enable_gradient_checkpointing,
    training_arguments,
)


@dataclass(frozen=True)
class Trained:
    """``seconds`` of training over all sessions, the loss as it was logged last, and the ``steps``."""

    seconds: float
    loss: float | None
    steps: int


def train_round(
    experiment: Experiment,
    request: RunConfig,
    ticket: Ticket | Learner,
    beginning: RoundStart,
    *,
    folder: Path,
    keep: Path | None,
    title: str,
    companion: RoundHooks | None = None,
    choice: BestChoice | None = None,
) -> Trained:
    """Train the model with the ticket, or learn one, to the end of the round, with checkpoints in ``folder``.

    ``companion``: goes along, and may end the round before its last step. ``choice``: judges a learner's
    masks on the way. ``keep``: where the state at the method's ``rewind_step`` goes, in the round that it is
    taken from.
    Raises OSError where a checkpoint cannot be written.
    """
    model, method = experiment.model, request.method
    at = beginning.checkpoint
    stop = companion.stopped if companion and companion.stopped is not None else beginning.stop
    if at is not None and at.step == stop:
        # Killed after the last step: there is nothing left to train.
        weights_in(at, model).restore_(model)
        if isinstance(ticket, Learner):
            ticket.load_(at.path / "model.safetensors")
        if companion:
            saved = load_file(at.path / "model.safetensors")
            model.load_state_dict({name: saved[name] for name in companion.names}, strict=False)
        history = json.loads((at.path / "trainer_state.json").read_text())["log_history"]
        return Trained(at.seconds, _last_loss(history), at.step)
    marks = CheckpointCallback(at.seconds if at else 0.0)
    if keep is not None and method.rewind is Rewind.STEP:
        marks.keep(method.rewind_step, keep)
    if method.rewind is Rewind.NONE:
        marks.ask_at(beginning.stop)
    callbacks = [marks, ProgressCallback(title), *([companion.callback] if companion else [])]
    if choice is not None:
        callbacks.append(choice)
    if beginning.weights is not None:
        callbacks.append(StartCallback(beginning.weights))
    if request.training.gradient_checkpointing:
        enable_gradient_checkpointing(model)
    distiller = None
    if request.distillation is not None:
        assert experiment.teacher is not None
        distiller = Distiller(experiment.teacher, request.distillation)
    trainer = TicketTrainer(
        model=model,
        args=training_arguments(request.training, folder, beginning.stop),
        train_dataset=experiment.train,
        data_collator=experiment.collate,
        callbacks=callbacks,
        ticket=ticket if isinstance(ticket, Ticket) else None,
        learner=ticket if isinstance(ticket, Learner) else None,
        distiller=distiller,
        penalties=[companion.penalty] if companion else [],
        tell_examples=companion.examples if companion else None,
        schedule_steps=beginning.schedule,
        group_by_length=request.training.group_by_length,
    )
    try:
        trainer.train(resume_from_checkpoint=str(at.path) if at else None)
    except (RuntimeError, SafetensorError) as error:
        # How torch and safetensors say that a file cannot be written.
        if any(words in str(error) for words in ("No space left", "file write failed", "unexpected pos")):
            raise OSError(f"cannot write a checkpoint to {folder}: no space left on the disk") from error
        raise
    # Mixed precision puts a wrapped forward on the model: it would stay for the evaluation. accelerate's own
    # unwrapping takes off transformers' decorators too; and the next round's must not find a model that it
    # takes for wrapped already, or it trains in full precision.
    for name in ("forward", "_original_forward", "_is_accelerate_prepared"):
        vars(model).pop(name, None)
    return Trained(marks.seconds, _last_loss(trainer.state.log_history), trainer.state.global_step)


def _last_loss(history: list[dict[str, float]]) -> float | None:
    losses = [entry["loss"] for entry in history if "loss" in entry]
    return float(losses[-1]) if losses else None
