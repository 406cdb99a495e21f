"""One-shot pruning of a model on disk: calibrate on texts or a task, prune, write a folder."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sparsebert.atomic import write_text
from sparsebert.bench.judged_texts import LabelledRows
from sparsebert.hf.model_card import extend_card_of_dense
from sparsebert.json_object import read_json_object
from sparsebert.one_shot import prune_
from sparsebert.one_shot.progress import Report
from sparsebert.one_shot.prune_in_place import find_one_shot
from sparsebert.pruning.density import Number
from sparsebert.tasks.models import load_whole
from sparsebert.tickets.provenance import weight_hash
from sparsebert.tickets.ticket import Ticket
from sparsebert.workflows.calibration_data import CalibrationData
from sparsebert.workflows.export import write_folder
from sparsebert.workflows.speed_target import SpeedGoal, SpeedTarget, sparsity_for, time_against_dense

if TYPE_CHECKING:
    from sparsebert.one_shot.layer_problem import LayerMethod
    from sparsebert.one_shot.prune_model import ModelMethod
    from sparsebert.one_shot.prune_units import UnitMethod


@dataclass(frozen=True)
class SpeedReached:
    """A predicted and a measured speed.

    Attributes:
        target: What was predicted.
        milliseconds: Measured mean time of a batch.
        dense_milliseconds: Measured mean time of the fastest dense form in the same batches.
    """

    target: SpeedTarget
    milliseconds: float
    dense_milliseconds: float

    def __str__(self) -> str:
        """Return a line of text."""
        target = self.target
        measured = self.dense_milliseconds / self.milliseconds
        return (
            f"predicted {target.speedup:.2f}x ({target.milliseconds:.3g} ms a batch), measured "
            f"{measured:.2f}x ({self.milliseconds:.3g} ms); the fastest dense form ({target.dense_form}) "
            f"takes {self.dense_milliseconds:.3g} ms"
        )

    def record(self) -> dict[str, Any]:
        """Return the fields as plain JSON values."""
        return asdict(self)


def prune_folder(
    name: str,
    folder: Path,
    method: str | LayerMethod | UnitMethod | ModelMethod,
    texts: Sequence[str] | LabelledRows,
    *,
    sparsity: Number | None = None,
    speed: SpeedGoal | None = None,
    count: int | None = None,
    batch_size: int | None = None,
    max_length: int | None = None,
    seed: int = 0,
    progress: Callable[[Report], None] | None = None,
    on_step: Callable[[str], None] = lambda step: None,
    **options: Any,
) -> tuple[Ticket, SpeedReached | None]:
    """Prune a model once on texts or examples of a task, and write it with its ticket to a folder.

    The folder holds dense weights with zeros, which any library loads, and ``ticket.safetensors``.

    Args:
        name: Hub id or folder of the model, of any task; sentence-transformers folders stay ones.
        folder: The folder to write. ``<folder>.unfinished`` beside it holds finished layers while pruning
            goes on, and ``<folder>.speed.json`` the sparsity that a speed needs; a call that was killed goes
            on after the last finished layer.
        method: As for :func:`sparsebert.prune_`.
        texts: Texts to calibrate on, or training examples of a task. Methods that read labels get them with
            the latter: "obert", and "fisher-units" if the model has the task's head.
        sparsity: As for :func:`sparsebert.prune_`.
        speed: A speed to reach, instead.
        count: Number of texts to draw; None for 512, or all if there are fewer.
        batch_size: Texts of a batch; None for 32, or 1 for "obert", which takes a gradient of each batch.
        max_length: Tokens at which a text is cut; examples of a task have their own.
        seed: Seed of the draw.
        progress: As for :func:`sparsebert.prune_`.
        on_step: Called with a description of each timing.
        options: More arguments of :func:`sparsebert.prune_`.

    Returns:
        The ticket and, for a speed, what was predicted and what the pruned model was measured at.

    Raises:
        ValueError, OSError: As for ``prune_``, ``sparsity_for`` and loading a model. Nothing is written.
    """
    # A second timing would find a slightly different sparsity, and the finished layers would not fit it.
    speed_file = folder.with_name(f"{folder.name}.speed.json")
    checkpoint = folder.with_name(f"{folder.name}.unfinished")
    model = load_whole(name)
    method = find_one_shot(method)
    data = CalibrationData(model, name, texts, max_length, seed)
    batches = data.batches(method, count, batch_size)
    timed: list[dict[str, Any]] = []
    target = None
    if speed is not None:
        timed = data.timed(speed)
        granularity = options.get("granularity", "element")
        question = {**asdict(speed), "granularity": granularity, "weights": weight_hash(model)}
        target = _target_in(speed_file, question)
        if target is None:
            target = sparsity_for(model.base_model, timed, speed, granularity=granularity, on_step=on_step)
            folder.parent.mkdir(parents=True, exist_ok=True)
            write_text(speed_file, json.dumps({"question": question, "target": asdict(target)}))
        sparsity = target.sparsity
    on_step(f"calibrating on {sum(len(batch['input_ids']) for batch in batches)} texts")
    ticket = prune_(
        model,
        method,
        data=batches,
        sparsity=sparsity,
        checkpoint=checkpoint,
        progress=progress,
        **options,
    )

    def card(text: str | None, unfinished: Path) -> str:
        metadata: Mapping[str, Any] = ticket.metadata
        return extend_card_of_dense(text, ticket.sparsity, metadata, name=folder.name)

    write_folder(model, name, folder, card, ticket=ticket)
    for file in (checkpoint, speed_file):
        file.unlink(missing_ok=True)
    if speed is None or target is None:
        return ticket, None
    on_step("timing the pruned model")
    milliseconds, dense, _ = time_against_dense(model.base_model, ticket, timed, speed)
    return ticket, SpeedReached(target, milliseconds, dense)


def _target_in(file: Path, question: Mapping[str, Any]) -> SpeedTarget | None:
    """Return the target that a killed call has written for the same speed and model, or None."""
    if not file.exists():
        return None
    saved = read_json_object(file)
    return SpeedTarget(**saved["target"]) if saved.get("question") == question else None
