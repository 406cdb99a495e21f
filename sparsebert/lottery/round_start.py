"""How a round begins: fresh, rewound, or from the checkpoint of a process that was killed."""

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

# The Trainer's name for the weights of a model that is not transformers' own.
_PLAIN_WEIGHTS = "model.safetensors"


@dataclass(frozen=True)
class RoundStart:
    """Where the training of a round begins and ends, in optimizer steps.

    ``checkpoint``: what the Trainer goes on from; None for the weights that the model holds.
    ``weights``: what must be in the model before its first step, to the bit; None in the middle of a round.
    ``schedule``: steps that the learning-rate schedule spans.
    """

    checkpoint: Checkpoint | None
    weights: Snapshot | None
    stop: int
    schedule: int


@dataclass(frozen=True)
class Course:
    """What all rounds of a run share: how many they are, the steps of each, and the first weights."""

    method: LotteryMethod
    folder: RunFolder
    rounds: int
    steps: int
    start: Snapshot
    seed: int


def begin_round(model: Any, course: Course, number: int) -> RoundStart:
    """Put the weights of a round's beginning into the model, or find the checkpoint to go on from.

    Raises RuntimeError if a weight that is rewound is not bit for bit what it was.
    """
    method, folder, steps = course.method, course.folder, course.steps
    onward = method.rewind is Rewind.NONE
    stop = steps * (number + 1 if onward else 1)
    schedule = steps * (course.rounds if onward else method.schedule_rounds)
    folder.checkpoints(number).mkdir(exist_ok=True)
    if latest := Checkpoint.latest(folder.checkpoints(number)):
        fresh = latest.step == (steps * number if onward else method.rewind_step) and number > 0
        if not fresh:
            return RoundStart(latest, None, stop, schedule)
    if number == 0:
        course.start.restore_(model)
        return RoundStart(None, course.start, stop, schedule)
    if method.rewind is Rewind.PRETRAINED:
        weights = _with_head(model, course, course.start, number)
        return RoundStart(None, weights, stop, schedule)
    if method.rewind is Rewind.LEARNING_RATE:
        weights = _with_head(model, course, Snapshot.load(folder.trained(number - 1)), number)
        return RoundStart(None, weights, stop, schedule)
    source = Checkpoint.latest(folder.checkpoints(number - 1) if onward else folder.rewind)
    if source is None:
        raise RuntimeError(f"{folder.path} lacks the checkpoint that round {number} begins with")
    weights = _with_head(model, course, weights_in(source, model), number)
    target = folder.checkpoints(number) / f"checkpoint-{source.step}"
    if distributed.is_main():
        source.copy_to(target, seconds=0.0, change=lambda path: _write_weights(model, path))
    return RoundStart(Checkpoint(target, source.step, 0.0), weights, stop, schedule)


def weights_in(checkpoint: Checkpoint, model: Any) -> Snapshot:
    """The weights in a checkpoint of a model of this class."""
    if _is_plain(model):
        return Snapshot.load(checkpoint.path / _PLAIN_WEIGHTS)
    return Snapshot.of(type(model).from_pretrained(checkpoint.path))


def _write_weights(model: Any, checkpoint: Path) -> None:
    """Put the model's weights in the place of those in a checkpoint."""
    if _is_plain(model):
        Snapshot.of(model).save(checkpoint / _PLAIN_WEIGHTS)
    else:
        model.save_pretrained(checkpoint)


def _is_plain(model: Any) -> bool:
    """Whether it is no model of transformers' own, and the Trainer writes its state as it is."""
    return not hasattr(type(model), "from_pretrained")


def _with_head(model: nn.Module, course: Course, source: Snapshot, number: int) -> Snapshot:
    """Write the source into the model, its head as the policy says; what is in the model then."""
    heads = {
        Head.REWIND: lambda: course.start if course.method.rewind is Rewind.LEARNING_RATE else source,
        Head.KEEP: lambda: Snapshot.load(course.folder.trained(number - 1)),
        Head.FRESH: lambda: fresh_head(model, course.seed + number),
    }
    names = head_names(model)
    head = heads[course.method.head]()
    whole = Snapshot({**source.tensors, **{name: head.tensors[name] for name in names}})
    whole.restore_(model)
    return whole
