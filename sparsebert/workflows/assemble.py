"""Assembly of a task's experiment for the lottery: model and head, encoded examples, metrics."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from random import Random
from typing import Any

import torch
from torch import nn

from sparsebert.accounting.fingerprints import digest_of_model, digest_of_tokenizer
from sparsebert.bert import resolve
from sparsebert.linear_layers import Filter, prunable
from sparsebert.lottery.experiment import Experiment
from sparsebert.lottery.method import LotteryMethod
from sparsebert.lottery.run_folder import RunFolder
from sparsebert.pruning.pruning_units import PruningUnits
from sparsebert.tasks import Data, Encoded, Task, TaskData, TextFormat, collate, encode, find_task, load
from sparsebert.tasks.evaluator import evaluator
from sparsebert.tasks.load_checked import fresh_tensors
from sparsebert.tasks.models import fit_positions, load_model
from sparsebert.tasks.text_format import keep_format_
from sparsebert.tasks.verdict import chance_metrics
from sparsebert.training.teachers import load_teacher


def assemble(
    task: Task,
    model: str,
    data: TaskData,
    seed: int = 0,
    text_format: TextFormat = TextFormat(),
    *,
    label_words: Sequence[str] | None = None,
    teacher: str | None = None,
    encode: Callable[..., Encoded] = encode,
) -> Experiment:
    """Assemble the experiment of a task: model and head, encoded training data, metrics on validation data.

    Args:
        task: The task.
        model: Hub id or folder of a pre-trained BERT.
        data: The task's examples.
        seed: Seed of a head that the checkpoint lacks, and of the masks of language modelling.
        text_format: Format in which the model reads examples.
        label_words: Words for the task's labels; the language model's head then serves as the task's head.
        teacher: Hub id or folder of a model to distil from.
        encode: :func:`sparsebert.tasks.encode`, or a version of it that caches its results.

    Raises:
        ValueError: As :func:`sparsebert.tasks.models.load_model` and
            :func:`sparsebert.training.teachers.load_teacher`.
    """
    loaded, tokenizer = load_model(model, task, seed, label_words=label_words, template=text_format.template)
    text_format = fit_positions(loaded, model, task, text_format)
    keep_format_(loaded, task, text_format)
    loaded_teacher = None if teacher is None else load_teacher(teacher, task, tokenizer, text_format)

    def judge(model: nn.Module, examples: int | None, seed: int) -> float:
        if examples is None:
            return evaluate(model)[task.metric]
        drawn = Random(seed).sample(range(len(data.train)), min(examples, len(data.train)))
        subset: Any = [data.train[i] for i in drawn]
        return evaluator(task, {task.splits[0]: subset}, tokenizer, text_format)(model)[task.metric]

    evaluate = evaluator(task, data.validation, tokenizer, text_format, encode=encode)
    return Experiment(
        loaded,
        encode(data.train, task, tokenizer, text_format),
        collate(task, tokenizer, seed=seed),
        evaluate,
        tokenizer.save_pretrained,
        task.metric,
        judge,
        loaded_teacher,
        chance_metrics(task, data.validation),
        {
            **data.fingerprints,
            "model": digest_of_model(loaded, without=fresh_tensors(loaded)),
            "tokenizer": digest_of_tokenizer(tokenizer),
        },
    )


def label_words_of(method: LotteryMethod, task: Task) -> tuple[str, ...] | None:
    """Return the words for the task's labels from the method's options, or None if the method uses none.

    Raises:
        ValueError: As :func:`sparsebert.tasks.label_words.words_for`.
    """
    option = getattr(method, "label_words", None)
    if option is None:
        return None
    from sparsebert.tasks.label_words import words_for

    return words_for(task, option, released=getattr(method, "smp_compat", False))


def task_of(task: str | Task, data: Data) -> Task:
    """Return the task that the examples belong to, or the task of that name.

    Raises:
        ValueError: For an unknown name; the message suggests the nearest.
    """
    return data.task if isinstance(data, TaskData) else find_task(task)


def has_pooler(task: Task) -> bool:
    """Return whether models with the task's head have a pooler."""
    return task.kind in ("classification", "regression")


def examples_of(task: Task, data: Data, *, train: bool = True) -> TaskData:
    """Return the examples in ``data``, or load them. Raises as :func:`sparsebert.tasks.load`."""
    return data if isinstance(data, TaskData) else load(task, data, train=train)


def load_once(folders: Iterable[Path], task: Task, data: Data) -> Data:
    """Load the examples once for the runs in these folders; return ``data`` if all runs are finished."""
    runs = [RunFolder(folder) for folder in folders]
    finished = all(run.run_json.exists() and run.finished() for run in runs)
    return data if finished else examples_of(task, data)


def require_whole_blocks(model: nn.Module, units: PruningUnits, filter: Filter | None = None) -> None:
    """Raise ValueError unless the units' blocks, if any, divide every matrix to prune; panels need not."""
    if units.granularity != "block" or units.block_size is None:
        return
    rows, columns = units.block_size
    shapes = {
        key: tuple(torch.as_tensor(resolve(model, key).weight).shape)
        for key in prunable(model, units.include_pooler, filter)
    }
    if min(rows, columns) < 1:
        raise ValueError(f"blocks must have at least one row and one column, got {rows}x{columns}")
    for key, (height, width) in shapes.items():
        if height % rows or width % columns:
            heights, widths = zip(*shapes.values(), strict=True)
            raise ValueError(
                f"blocks of {rows}x{columns} do not divide {key} ({height}x{width}): "
                f"their rows must divide {math.gcd(*heights)} and their columns {math.gcd(*widths)}"
            )
