"""Training a task's tickets: model, task data and metrics put together for the lottery."""

from __future__ import annotations

import copy
import math
import os
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import torch
from torch import nn

import sparsebert.lottery.methods  # noqa: F401  (registers them)
from sparsebert.bert import prunable, resolve
from sparsebert.compact import compact_, compaction_description
from sparsebert.lottery.experiment import Experiment, PruningUnits, RunConfig
from sparsebert.lottery.method import LotteryMethod, lottery_method
from sparsebert.lottery.multi_task import joint
from sparsebert.lottery.run_folder import Record, RunFolder
from sparsebert.tasks import Encoded, Task, TaskData, collate, encode, find_task, load
from sparsebert.tasks.evaluator import evaluator, first_inputs
from sparsebert.tasks.metrics import primary, summarise
from sparsebert.tasks.models import load_model, short_name, template_of
from sparsebert.tickets.ticket import Ticket
from sparsebert.training import distributed
from sparsebert.training.distillation import Distillation
from sparsebert.training.teachers import load_teacher, teacher_id

POOLER = "pooler.dense"

# A folder with the task's files, the examples themselves, or None for the hub.
Data = str | os.PathLike[str] | TaskData | None


def train(
    task: str,
    model: str,
    request: RunConfig,
    out: str | os.PathLike[str],
    *,
    data: Data = None,
    also: Mapping[str, Data] | None = None,
    teacher: str | Mapping[str, str] | None = None,
    max_length: int | None = None,
    say: Callable[[str], None] = lambda text: None,
    before: Callable[[nn.Module, RunConfig], None] = lambda model, request: None,
    encode: Callable[..., Encoded] = encode,
) -> list[Record]:
    """Find (or train) a ticket of a task, and return the records of its rounds.

    ``task``: a name of ``sparsebert.tasks.TASKS``. ``model``: a pre-trained BERT by hub id or local folder.
    ``request``: method, sparsity, units, training. ``out``: the run's folder (see
    :mod:`sparsebert.lottery.run_folder`); one that is there goes on where it was interrupted, and one that is
    finished is only read. ``data``: a folder with the task's files, or the examples of a task that need not
    be one of ``TASKS``; else the hub. ``also``: the other tasks of a method that works on several, and their
    data. ``teacher``: a model trained on the task, whose answers are learned too as ``request.distillation``
    says (else as its defaults do); for several tasks a teacher by task. ``max_length``: tokens of an example.
    ``before``: called once with model and request before the work begins. ``encode``: that of
    :mod:`sparsebert.tasks`, or one that remembers what several runs read.

    A ticket that masks the pooler loses that mask where the task's models have none (SQuAD, masked language
    modelling), as in Chen et al. 2020. Raises ValueError in one line for bad input, blocks that do not divide
    the matrices among it, and OSError for files that cannot be read or written.
    """
    # Late: a run that is finished needs none of it.
    from sparsebert.lottery.loop import run

    distributed.join()
    known = task_of(task, data)
    names: Record = {
        "task": known.name,
        "model": short_name(model),
        "max_length": max_length or known.max_length,
    }
    if isinstance(data, TaskData) and not known.hub:
        names["data"] = dict(data.source)
    others = _others(request, known, also or {})
    if others:
        names["also"] = [each.name for each, _ in others]
    teachers = {known.name: teacher} if isinstance(teacher, str) else dict(teacher or {})
    request = _taught(request, teachers, [known.name, *(each.name for each, _ in others)])
    request = _without_absent_pooler(replace(request, names=names), known)
    folder = RunFolder(out)
    if folder.run_json.exists() and folder.finished():
        folder.require(request.describe())
        say(f"{folder.path} is finished: nothing to do")
        return folder.rounds_done()
    seed = request.training.seed
    words = label_words_of(request.method, known)
    template = getattr(request.method, "template", None)
    experiment = assemble(
        known,
        model,
        examples_of(known, data),
        seed,
        max_length,
        words,
        teachers.get(known.name),
        template,
        encode,
    )
    if others:
        parts = {
            each.name: assemble(
                each, model, examples_of(each, source), seed, max_length, teacher=teachers.get(each.name)
            )
            for each, source in others
        }
        experiment = joint({known.name: experiment, **parts}, getattr(request.method, "proportions", "equal"))
    require_whole_blocks(experiment.model, request.units)
    if distributed.is_main():
        before(experiment.model, request)
    return run(experiment, request, out, say)


def assemble(
    task: Task,
    model: str,
    data: TaskData,
    seed: int = 0,
    max_length: int | None = None,
    label_words: Sequence[str] | None = None,
    teacher: str | None = None,
    template: str | None = None,
    encode: Callable[..., Encoded] = encode,
) -> Experiment:
    """The experiment of a task: model with a head, encoded training data, metrics on the validation data.

    A head that the checkpoint lacks is initialised from ``seed``; with ``label_words`` (and a
    ``template`` to read them in) none is needed.
    Raises ValueError as :func:`load_model` and, for a ``teacher``,
    :func:`sparsebert.training.teachers.load_teacher` do.
    """
    loaded, tokenizer = load_model(model, task, seed, label_words=label_words, template=template)
    form: dict[str, Any] = {"max_length": max_length, "template": template}
    taught_by = None if teacher is None else load_teacher(teacher, task, tokenizer, **form)
    evaluate = evaluator(task, data.validation, tokenizer, **form, encode=encode)

    def judge(model: nn.Module, examples: int | None, seed: int) -> float:
        if examples is None:
            return evaluate(model)[task.metric]
        drawn = Random(seed).sample(range(len(data.train)), min(examples, len(data.train)))
        some: Any = [data.train[i] for i in drawn]
        return evaluator(task, {task.splits[0]: some}, tokenizer, **form)(model)[task.metric]

    return Experiment(
        loaded,
        encode(data.train, task, tokenizer, **form),
        collate(task, tokenizer, seed=seed),
        evaluate,
        tokenizer.save_pretrained,
        task.metric,
        judge,
        taught_by,
    )


def label_words_of(method: LotteryMethod, task: Task) -> tuple[str, ...] | None:
    """The words that the method's options take for the task's labels; None where it has a head of its own.

    Raises ValueError as :func:`sparsebert.tasks.label_words.words_for` does.
    """
    asked = getattr(method, "label_words", None)
    if asked is None:
        return None
    from sparsebert.tasks.label_words import words_for

    return words_for(task, asked, released=getattr(method, "smp_compat", False))


def evaluate(
    task: str,
    model: str,
    *,
    ticket: Ticket | None = None,
    data: Data = None,
    max_length: int | None = None,
) -> dict[str, float]:
    """Metrics of a trained model (a folder, such as ``model/`` of a run) on a task's validation data.

    ``ticket``: prune the model first. Raises ValueError and OSError as :func:`load_model` and
    :func:`sparsebert.tasks.load` do, and for a ticket of another model.
    """
    known = task_of(task, data)
    loaded, tokenizer, form = _trained(model, known, max_length)
    if ticket is not None:
        ticket.apply_(loaded)
    validation = examples_of(known, data, train=False).validation
    return evaluator(known, validation, tokenizer, **form)(loaded)


def evaluate_compacted(
    task: str,
    model: str,
    ticket: Ticket,
    *,
    min_row_weights: int = 0,
    data: Data = None,
    max_length: int | None = None,
) -> Record:
    """What it costs a trained model to have what a ticket empties taken out (:func:`sparsebert.compact_`).

    ``metrics`` and ``masked_metrics``: on the task's validation data, compacted and only masked.
    ``compaction``: weights, ``min_row_weights`` and ``output_change``, over the first validation batches, of
    :func:`sparsebert.compaction_description`. Raises as :func:`evaluate` and `compact_` do.
    """
    known = task_of(task, data)
    loaded, tokenizer, form = _trained(model, known, max_length)
    validation = examples_of(known, data, train=False).validation
    measure = evaluator(known, validation, tokenizer, **form)
    first = next(iter(validation.values()))
    batches = first_inputs(known, first, tokenizer, loaded.device, **form)
    masked = ticket.apply_(copy.deepcopy(loaded))
    compact_(loaded, ticket, min_row_weights=min_row_weights, batches=batches)
    found = compaction_description(loaded)
    told = {name: found[name] for name in ("min_row_weights", "weights", "output_change")}
    return {"metrics": measure(loaded), "masked_metrics": measure(masked), "compaction": told}


def _trained(name: str, task: Task, max_length: int | None) -> tuple[Any, Any, dict[str, Any]]:
    """A trained model, on a GPU where there is one, its tokenizer, and how it takes its examples."""
    model, tokenizer = load_model(name, task, trained=True)
    if torch.cuda.is_available():
        model = model.cuda()
    return model, tokenizer, {"max_length": max_length, "template": template_of(model)}


def seeded(request: RunConfig, seed: int) -> RunConfig:
    """The same request with another seed."""
    return replace(request, training=replace(request.training, seed=seed))


def dense(request: RunConfig) -> RunConfig:
    """The dense model, trained like the request but by its labels alone: what its tickets are judged by."""
    plain = replace(request, distillation=None)
    return replace(plain, method=lottery_method("dense"), sparsity=0.0, units=PruningUnits(), ticket=None)


def task_of(task: str, data: Data) -> Task:
    """The task of the examples, or of that name. Raises ValueError for an unknown one (nearest offered)."""
    return data.task if isinstance(data, TaskData) else find_task(task)


def has_pooler(task: Task) -> bool:
    """Whether models with the task's head have a pooler below it."""
    return task.kind in ("classification", "regression")


def examples_of(task: Task, data: Data, *, train: bool = True) -> TaskData:
    """The examples, read where they are not given. Raises as :func:`sparsebert.tasks.load`."""
    return data if isinstance(data, TaskData) else load(task, data, train=train)


def read_for(folders: Iterable[Path], task: Task, data: Data) -> Data:
    """The examples, read once for the runs in these folders; left alone where all of them are finished."""
    runs = [RunFolder(folder) for folder in folders]
    done = all(run.run_json.exists() and run.finished() for run in runs)
    return data if done else examples_of(task, data)


def require_whole_blocks(model: nn.Module, units: PruningUnits) -> None:
    """Raise ValueError unless the units' blocks, if they are blocks, divide every matrix to prune."""
    if units.block_size is None:
        return
    rows, columns = units.block_size
    shapes = {
        key: tuple(torch.as_tensor(resolve(model, key).weight).shape)
        for key in prunable(model, units.include_pooler)
    }
    for key, (height, width) in shapes.items():
        if height % rows or width % columns:
            heights, widths = zip(*shapes.values(), strict=True)
            raise ValueError(
                f"blocks of {rows}x{columns} do not divide {key} ({height}x{width}): "
                f"their rows must divide {math.gcd(*heights)} and their columns {math.gcd(*widths)}"
            )


def over_seeds(
    task: str | Task, runs: Sequence[Sequence[Record]], dense_runs: Sequence[Sequence[Record]] = ()
) -> list[Record]:
    """What runs that differ in their seeds say of each round: the fields of a record each.

    Sparsity and density are means: some methods find another one for each seed. The rest is that of
    :func:`sparsebert.tasks.metrics.summarise`, judged by ``dense_runs`` or, without them, by the dense round that
    some methods begin with; a dense round itself is not judged.
    """
    own_dense = runs if runs[0][0]["source"] == "all" else ()
    judges = [records[0] for records in dense_runs or own_dense]
    rows: list[Record] = []
    for number, first in enumerate(runs[0]):
        of_round = [records[number] for records in runs]
        row = {name: first[name] for name in ("method", "task", "model", "round")}
        row |= {share: statistics.mean(each[share] for each in of_round) for share in ("sparsity", "density")}
        rows.append(row | summarise(primary(task), of_round, () if first["source"] == "all" else judges))
    return rows


def _others(request: RunConfig, task: Task, also: Mapping[str, Data]) -> list[tuple[Task, Data]]:
    """The other tasks of a run. Raises ValueError if the method needs or takes none, or for one twice."""
    if request.method.joint != bool(also):
        wants = (
            "needs another task beside" if request.method.joint else "works on one task: leave out all but"
        )
        raise ValueError(f"method {request.method.name} {wants} {task.name}")
    others = [(task_of(name, data), data) for name, data in also.items()]
    if task.name in (each.name for each, _ in others):
        raise ValueError(f"task {task.name} is named twice")
    if others and request.training.group_by_length:
        raise ValueError("several tasks have their turns: group_by_length is for one")
    return others


def _taught(request: RunConfig, teachers: Mapping[str, str], tasks: Sequence[str]) -> RunConfig:
    """The request with its teachers in it. Raises ValueError for one of a task that the run does not have."""
    for name in teachers:
        if name not in tasks:
            raise ValueError(f"a teacher for {name}, which is none of the run's tasks: {', '.join(tasks)}")
    if not teachers:
        return request
    known = {name: teacher_id(each) for name, each in teachers.items()}
    return replace(request, distillation=replace(request.distillation or Distillation(), teachers=known))


def _without_absent_pooler(request: RunConfig, task: Task) -> RunConfig:
    ticket = request.ticket
    if ticket is None or POOLER not in ticket.masks or has_pooler(task):
        return request
    rest = Ticket(
        {key: mask for key, mask in ticket.masks.items() if key != POOLER},
        bias_masks={key: mask for key, mask in ticket.bias_masks.items() if key != POOLER},
        removed=ticket.removed,
        metadata=ticket.metadata,
    )
    return replace(request, ticket=rest, sparsity=None)
