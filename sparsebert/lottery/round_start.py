"""The start of a round: from initial weights, from rewound weights, or from a checkpoint."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from sparsebert.lottery.method import Head, LotteryMethod, Rewind
from sparsebert.lottery.run_folder import RunFolder
from sparsebert.training import distributed
from sparsebert.training.checkpoint import Checkpoint
from sparsebert.training.snapshot import Snapshot, fresh_head, head_names

# The file in which the Trainer saves the weights of a model outside of transformers.
_PLAIN_WEIGHTS = "model.safetensors"


@dataclass(frozen=True)
class RoundStart:
    """Where the training of a round starts and stops, in optimizer steps.

    Attributes:
        checkpoint: Checkpoint to resume from; None to train from the weights in the model.
        weights: Exact weights that the model must hold before the first step; None when a round resumes.
        stop: Step at which the round stops.
        schedule: Steps that the learning-rate schedule spans.
    """

    checkpoint: Checkpoint | None
    weights: Snapshot | None
    stop: int
    schedule: int


@dataclass(frozen=True)
class RunPlan:
    """Data that all rounds of a run share.

    Attributes:
        method: The lottery method.
        folder: Folder of the run.
        rounds: Number of rounds.
        steps: Optimizer steps of a round.
        start: Initial weights of the run.
        seed: Seed of fresh heads.
    """

    method: LotteryMethod
    folder: RunFolder
    rounds: int
    steps: int
    start: Snapshot
    seed: int


def start_round(model: Any, plan: RunPlan, number: int) -> RoundStart:
    """Write the initial weights of a round into the model, or find the checkpoint to resume from.

    Raises:
        RuntimeError: A rewound weight differs from its snapshot in a bit, or a checkpoint is missing.
    """
    method, folder, steps = plan.method, plan.folder, plan.steps
    continuous = method.rewind is Rewind.NONE
    stop = steps * (number + 1 if continuous else 1)
    schedule = steps * (plan.rounds if continuous else method.schedule_rounds)
    folder.checkpoints(number).mkdir(exist_ok=True)
    if latest := Checkpoint.latest(folder.checkpoints(number)):
        first_step = steps * number if continuous else method.rewind_step
        if number == 0 or latest.step != first_step:
            return RoundStart(latest, None, stop, schedule)
    if number == 0:
        plan.start.restore_(model)
        return RoundStart(None, plan.start, stop, schedule)
    if method.rewind is Rewind.PRETRAINED:
        weights = _with_head(model, plan, plan.start, number)
        return RoundStart(None, weights, stop, schedule)
    if method.rewind is Rewind.LEARNING_RATE:
        weights = _with_head(model, plan, Snapshot.load(folder.trained(number - 1)), number)
        return RoundStart(None, weights, stop, schedule)
    checkpoint, weights = _rewound_checkpoint(model, plan, number)
    return RoundStart(checkpoint, weights, stop, schedule)


def weights_in(checkpoint: Checkpoint, model: Any) -> Snapshot:
    """Return the weights in a checkpoint, for a model of the same class as ``model``."""
    if _is_plain(model):
        return Snapshot.load(checkpoint.path / _PLAIN_WEIGHTS)
    return Snapshot.of(type(model).from_pretrained(checkpoint.path))


def _rewound_checkpoint(model: Any, plan: RunPlan, number: int) -> tuple[Checkpoint, Snapshot]:
    """Copy the checkpoint to rewind to into the round's folder, with the head for the start of the round."""
    folder, continuous = plan.folder, plan.method.rewind is Rewind.NONE
    source = Checkpoint.latest(folder.checkpoints(number - 1) if continuous else folder.rewind)
    if source is None:
        raise RuntimeError(f"{folder.path} lacks the checkpoint from which round {number} starts")
    weights = _with_head(model, plan, weights_in(source, model), number)
    target = folder.checkpoints(number) / f"checkpoint-{source.step}"
    if distributed.is_main():
        source.copy_to(target, seconds=0.0, change=lambda path: _write_weights(model, path))
    return Checkpoint(target, source.step, 0.0), weights


def _write_weights(model: Any, checkpoint: Path) -> None:
    """Replace the weights in a checkpoint with the model's."""
    if _is_plain(model):
        Snapshot.of(model).save(checkpoint / _PLAIN_WEIGHTS)
    else:
        model.save_pretrained(checkpoint)


def _is_plain(model: Any) -> bool:
    """Return whether the model is outside of transformers, so that the Trainer saves its ``state_dict``."""
    return not hasattr(type(model), "from_pretrained")


def _with_head(model: nn.Module, plan: RunPlan, source: Snapshot, number: int) -> Snapshot:
    """Write a snapshot, with the head for the start of the round, into the model, and return the result."""
    heads = {
        Head.REWIND: lambda: plan.start if plan.method.rewind is Rewind.LEARNING_RATE else source,
        Head.KEEP: lambda: Snapshot.load(plan.folder.trained(number - 1)),
        Head.FRESH: lambda: fresh_head(model, plan.seed + number),
    }
    names = head_names(model)
    head = heads[plan.method.head]()
    combined = Snapshot({**source.tensors, **{name: head.tensors[name] for name in names}})
    combined.restore_(model)
    return combined
