"""Metrics of a trained model on a task, optionally with a ticket applied or after compaction."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from sparsebert.accounting.fingerprints import Fingerprints, digest_of_model, digest_of_tokenizer
from sparsebert.compact import compact_, compaction_description
from sparsebert.lottery.run_folder import Record
from sparsebert.sparsify import densify_, sparsify_
from sparsebert.tasks import Data, Examples, Task, TextFormat
from sparsebert.tasks.evaluator import evaluator, first_inputs
from sparsebert.tasks.models import fit_positions, load_model, template_of
from sparsebert.tasks.text_format import trained_format
from sparsebert.tickets.ticket import Ticket
from sparsebert.workflows.assemble import examples_of, task_of


def evaluate(
    task: str,
    model: str,
    *,
    ticket: Ticket | None = None,
    data: Data = None,
    text_format: TextFormat = TextFormat(),
    sparse: Mapping[str, Any] | None = None,
) -> dict[str, float]:
    """Evaluate a trained model on a task's validation data.

    Args:
        task: A name of ``sparsebert.tasks.TASKS``; ignored if ``data`` holds the examples of a task.
        model: Hub id or folder of the model, such as ``model/`` of a run.
        ticket: A ticket to prune the model with first.
        data: A folder with the task's files, the examples themselves, or None for the hub.
        text_format: Format in which the model reads examples; where a field is None, that of its training,
            or the task's default if the model does not record it.
        sparse: Options of :func:`sparsebert.sparsify_`, to evaluate the model as it computes when sparse;
            None evaluates the masked dense model, or a folder's model as it was saved.

    Returns:
        Metrics by name, as shares: 0.91, not 91.

    Raises:
        ValueError: As :func:`sparsebert.tasks.models.load_model` and :func:`sparsebert.tasks.load`, and for a
            ticket of another model.
        OSError: For files that cannot be read.
    """
    definition = task_of(task, data)
    validation = examples_of(definition, data, train=False).validation
    (evaluation,) = evaluate_each(
        definition, model, {"": validation}, ticket=ticket, text_format=text_format, sparse=sparse
    ).values()
    return evaluation.metrics


@dataclass(frozen=True)
class Evaluation:
    """What a model answers, and how well.

    Attributes:
        metrics: Metrics by name, as shares.
        answers: Predictions by split, as :func:`sparsebert.tasks.evaluator.evaluator` describes them.
        formats: ``text_format`` of the examples, and ``trained_text_format``, None if the model records none:
            as of :meth:`sparsebert.tasks.text_format.TextFormat.record`.
        fingerprints: Digests of the model as it was loaded, and of its tokenizer.
    """

    metrics: dict[str, float]
    answers: dict[str, Any]
    formats: Record
    fingerprints: Fingerprints = field(default_factory=dict)


def evaluate_each(
    task: Task,
    model: str,
    variants: Mapping[str, Mapping[str, Examples]],
    *,
    ticket: Ticket | None = None,
    text_format: TextFormat = TextFormat(),
    sparse: Mapping[str, Any] | None = None,
) -> dict[str, Evaluation]:
    """Evaluate a trained model, loaded once, on variants of a task's validation data.

    Args:
        task: The task.
        model: As for :func:`evaluate`.
        variants: Name of the variant -> examples by split.
        ticket: As for :func:`evaluate`.
        text_format: As for :func:`evaluate`.
        sparse: As for :func:`evaluate`.

    Returns:
        The evaluations by the names of the variants.

    Raises:
        ValueError, OSError: As :func:`evaluate`.
    """
    loaded, tokenizer, text_format = _load_trained(model, task, text_format)
    fingerprints = _fingerprints(loaded, tokenizer)
    if ticket is not None:
        ticket.apply_(loaded)
    if sparse is not None:
        sparsify_(densify_(loaded), ticket, **sparse)
    evaluations, formats = {}, _formats(loaded, task, text_format)
    for name, validation in variants.items():
        answers: dict[str, Any] = {}
        metrics = evaluator(task, validation, tokenizer, text_format)(loaded, answers)
        evaluations[name] = Evaluation(metrics, answers, formats, fingerprints)
    return evaluations


def evaluate_compacted(
    task: str,
    model: str,
    ticket: Ticket,
    *,
    min_row_weights: int = 0,
    data: Data = None,
    text_format: TextFormat = TextFormat(),
) -> Record:
    """Evaluate a trained model before and after compaction by a ticket (:func:`sparsebert.compact_`).

    Args:
        task: As for :func:`evaluate`.
        model: As for :func:`evaluate`.
        ticket: The ticket to compact by.
        min_row_weights: As for :func:`sparsebert.compact_`; more than 0 is lossy.
        data: As for :func:`evaluate`.
        text_format: As for :func:`evaluate`.

    Returns:
        ``metrics`` of the compacted model and ``masked_metrics`` of the masked model on the validation data,
        the formats and fingerprints as of :class:`Evaluation`, and ``compaction``: ``weights``,
        ``min_row_weights`` and ``output_change`` from :func:`sparsebert.compaction_description`. The change
        is measured on the first validation batches.

    Raises:
        ValueError: As :func:`evaluate` and :func:`sparsebert.compact_`.
    """
    definition = task_of(task, data)
    loaded, tokenizer, text_format = _load_trained(model, definition, text_format)
    validation = examples_of(definition, data, train=False).validation
    measure = evaluator(definition, validation, tokenizer, text_format)
    first_split = next(iter(validation.values()))
    batches = first_inputs(definition, first_split, tokenizer, text_format, device=loaded.device)
    fingerprints = _fingerprints(loaded, tokenizer)
    masked = ticket.apply_(copy.deepcopy(loaded))
    compact_(loaded, ticket, min_row_weights=min_row_weights, batches=batches)
    description = compaction_description(loaded)
    compaction = {name: description[name] for name in ("min_row_weights", "weights", "output_change")}
    scores = {"metrics": measure(loaded), "masked_metrics": measure(masked), "compaction": compaction}
    return {**scores, **_formats(loaded, definition, text_format), "fingerprints": fingerprints}


def _fingerprints(model: Any, tokenizer: Any) -> Fingerprints:
    return {"model": digest_of_model(model), "tokenizer": digest_of_tokenizer(tokenizer)}


def _load_trained(name: str, task: Task, text_format: TextFormat) -> tuple[Any, Any, TextFormat]:
    """Return a trained model (on a GPU if there is one), its tokenizer, and the format that it reads."""
    model, tokenizer = load_model(name, task, trained=True)
    if torch.cuda.is_available():
        model = model.cuda()
    text_format = fit_positions(model, name, task, text_format.over(trained_format(model, task)))
    return model, tokenizer, replace(text_format, template=template_of(model))


def _formats(model: Any, task: Task, text_format: TextFormat) -> Record:
    """Return the formats for the records: that of the evaluation, and that of the training if recorded."""
    trained = trained_format(model, task)
    recorded = trained.record(task) if trained.max_length else None
    return {"text_format": text_format.record(task), "trained_text_format": recorded}
