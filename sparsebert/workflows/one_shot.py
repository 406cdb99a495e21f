"""One-shot pruning of a model on disk: calibrate on texts or a task, prune, write a folder."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from sparsebert.accounting.run_account import RunAccount
from sparsebert.atomic import write_text
from sparsebert.bench.judged_texts import LabelledRows
from sparsebert.hf.model_card import extend_card_of_dense
from sparsebert.json_object import read_json_object
from sparsebert.linear_layers import prunable
from sparsebert.one_shot import prune_
from sparsebert.one_shot.progress import Report
from sparsebert.one_shot.progress_file import ProgressFile
from sparsebert.one_shot.prune_in_place import find_one_shot
from sparsebert.pruning.density import Number
from sparsebert.pruning.granularity import listed
from sparsebert.tasks.models import load_whole
from sparsebert.tickets.provenance import weight_hash
from sparsebert.tickets.ticket import Ticket
from sparsebert.workflows.calibration_data import CalibrationData
from sparsebert.workflows.export import write_folder
from sparsebert.workflows.method_programme import programme_for
from sparsebert.workflows.speed_target import SpeedGoal, SpeedTarget, target_for, time_against_dense

if TYPE_CHECKING:
    from sparsebert.one_shot.layer_problem import LayerMethod
    from sparsebert.one_shot.prune_model import ModelMethod
    from sparsebert.one_shot.prune_units import UnitMethod

# Options of ``prune_`` on which depends what is kept for a speed.
CHOOSES = ("granularity", "block_size", "allocate", "filter", "include_pooler", "round_to")


@dataclass(frozen=True)
class SpeedReached:
    """A predicted and a measured speed.

    Attributes:
        target: What was predicted.
        milliseconds: Measured mean time of a batch; None for a GPU, where nothing is measured.
        dense_milliseconds: Measured mean time of the fastest dense form in the same batches.
    """

    target: SpeedTarget
    milliseconds: float | None = None
    dense_milliseconds: float | None = None

    def __str__(self) -> str:
        """Return a line of text."""
        target = self.target
        matrices = f"; matrices: {target.composition}" if target.composition else ""
        predicted = f"predicted {target.speedup:.2f}x ({target.milliseconds:.3g} ms a batch"
        if self.milliseconds is None or self.dense_milliseconds is None:
            return (
                f"{predicted} in its linear layers; {target.dense_milliseconds:.3g} ms {target.dense_form}), "
                f"not measured here{matrices}"
            )
        measured = self.dense_milliseconds / self.milliseconds
        return (
            f"{predicted}), measured {measured:.2f}x ({self.milliseconds:.3g} ms); the fastest dense form "
            f"({target.dense_form}) takes {self.dense_milliseconds:.3g} ms{matrices}"
        )

    def summary(self, goal: SpeedGoal) -> dict[str, Any]:
        """Return what was asked for, predicted and measured, for the ticket's metadata."""
        target = self.target
        return {
            **asdict(goal),
            "predicted_milliseconds": target.milliseconds,
            "modelled_milliseconds": target.modelled_milliseconds,
            "measured_milliseconds": self.milliseconds,
            "dense_milliseconds": self.dense_milliseconds or target.dense_milliseconds,
            "dense_form": target.dense_form,
        }

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
    account: RunAccount | None = None,
    **options: Any,
) -> tuple[Ticket, SpeedReached | None]:
    """Prune a model once on texts or examples of a task, and write it with its ticket to a folder.

    The folder holds dense weights with zeros, which any library loads, and ``ticket.safetensors``.

    Args:
        name: Hub id or folder of the model, of any task; sentence-transformers folders stay ones.
        folder: The folder to write. ``<folder>.unfinished`` beside it holds finished layers while pruning
            goes on, and ``<folder>.speed.json`` what is kept for a speed; a call that was killed goes on
            after the last finished layer.
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
        account: Gets the fingerprints of model, tokenizer and texts.
        options: More arguments of :func:`sparsebert.prune_`.

    Returns:
        The ticket and, for a speed, what was predicted and what the pruned model was measured at.

    Raises:
        ValueError, OSError: As for ``prune_``, ``target_for`` and loading a model. Nothing is written.
    """
    # A second timing would find a slightly different sparsity, and the finished layers would not fit it.
    speed_file, checkpoint, measured = unfinished_files(folder)
    model = load_whole(name)
    pruning_method = find_one_shot(method)
    data = CalibrationData(model, name, texts, max_length, seed)
    if account is not None:
        rows: Any = texts.rows if isinstance(texts, LabelledRows) else texts
        account.identify(model=model, tokenizer=data.tokenizer, texts=rows)
    batches = data.batches(pruning_method, count, batch_size)
    timed: list[dict[str, Any]] = []
    target = None
    if speed is not None:
        timed = data.timed(speed)
        chosen_by = {name: options[name] for name in CHOOSES if options.get(name) is not None}
        matrices = prunable(model, options.get("include_pooler", False), options.get("filter"))
        question = {**asdict(speed), "method": pruning_method.name, "matrices": list(matrices)}
        question |= {name: chosen_by[name] for name in chosen_by.keys() - {"filter"}}
        question |= {"weights": weight_hash(model)}
        target = _target_in(speed_file, question)
        if target is None:
            saved = ProgressFile(measured, question)
            machine: dict[str, Any] = {"tolerance": speed.tolerance, "device": speed.device}
            torch.set_num_threads(speed.threads)  # costs hold for a number of threads
            on_step("measuring what each matrix loses")
            with _deleted_if_refused(measured):
                programme = programme_for(
                    model,
                    pruning_method,
                    batches,
                    timed,
                    saved=saved,
                    progress=progress,
                    **machine,
                    **chosen_by,
                )
                target = target_for(model.base_model, programme, timed, speed, on_step=on_step)
            folder.parent.mkdir(parents=True, exist_ok=True)
            write_text(speed_file, json.dumps({"question": question, "target": asdict(target)}))
        sparsity = target.sparsity
        options |= _kept(target, options)
    elif len(names := listed(options.get("granularity", "element"))) > 1:
        raise ValueError(
            f"granularity lists {len(names)}, among which each matrix chooses by milliseconds: name one, or "
            "pass a speed"
        )
    on_step(f"calibrating on {sum(len(batch['input_ids']) for batch in batches)} texts")
    ticket = prune_(
        model,
        pruning_method,
        data=batches,
        sparsity=sparsity,
        checkpoint=checkpoint,
        progress=progress,
        **options,
    )

    reached = None
    if speed is not None and target is not None:
        reached = SpeedReached(target)
        if speed.device is None:
            on_step("timing the pruned model")
            reached = SpeedReached(target, *time_against_dense(model.base_model, ticket, timed, speed)[:2])
        ticket = Ticket(ticket.masks, metadata={**ticket.metadata, "speed": reached.summary(speed)})

    def card(text: str | None, unfinished: Path) -> str:
        metadata: Mapping[str, Any] = ticket.metadata
        return extend_card_of_dense(text, ticket.sparsity, metadata, name=folder.name)

    write_folder(model, name, folder, card, ticket=ticket)
    for file in (checkpoint, measured, speed_file):
        file.unlink(missing_ok=True)
    return ticket, reached


def unfinished_files(folder: Path) -> tuple[Path, Path, Path]:
    """Return the files from which a pruning to ``folder`` goes on after a kill.

    They hold what is kept for a speed, the finished layers, and what was measured for a speed.
    """
    names = ("speed.json", "unfinished", "measured.unfinished")
    speed_file, checkpoint, measured = (folder.with_name(f"{folder.name}.{name}") for name in names)
    return speed_file, checkpoint, measured


@contextlib.contextmanager
def _deleted_if_refused(file: Path) -> Iterator[None]:
    """Delete the file in which a killed call would go on if the call raises ValueError, as it would again."""
    try:
        yield
    except ValueError:
        file.unlink(missing_ok=True)
        raise


def _kept(target: SpeedTarget, options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of ``prune_`` that keep what a speed leaves."""
    if not target.densities:
        return {}
    first, *others = listed(options.get("granularity", "element"))
    kept: dict[str, Any] = {"densities": target.densities, "allocate": None}
    if others:
        kept |= {"granularity": first, "granularities": target.granularities}
    return kept


def _target_in(file: Path, question: Mapping[str, Any]) -> SpeedTarget | None:
    """Return the target that a killed call has written for the same speed and model, or None."""
    if not file.exists():
        return None
    saved = read_json_object(file)
    return SpeedTarget(**saved["target"]) if saved.get("question") == question else None
