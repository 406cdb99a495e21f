"""Runs of a lottery method on a task, and the comparison of runs over seeds."""

from __future__ import annotations

import os
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import sparsebert.lottery.methods  # noqa: F401  (registers them)
from sparsebert.accounting.fingerprints import combined
from sparsebert.accounting.usage import total
from sparsebert.bench.environment import detect
from sparsebert.lottery.experiment import Experiment, RunConfig
from sparsebert.lottery.method import lottery_method
from sparsebert.lottery.method_defaults import as_begun, with_defaults_of_method
from sparsebert.lottery.multi_task import multi_task_experiment
from sparsebert.lottery.run_context import RunContext
from sparsebert.lottery.run_folder import Record, RunFolder
from sparsebert.pruning.pruning_units import PruningUnits
from sparsebert.tasks import Data, Encoded, Task, TaskData, TextFormat, encode
from sparsebert.tasks.metrics import primary
from sparsebert.tasks.models import short_name
from sparsebert.tasks.verdict import summarise
from sparsebert.tickets.ticket import Ticket
from sparsebert.training import distributed
from sparsebert.training.heartbeat import heartbeat
from sparsebert.training.teachers import teacher_id
from sparsebert.workflows.assemble import (
    assemble,
    examples_of,
    has_pooler,
    label_words_of,
    require_whole_blocks,
    task_of,
)

POOLER = "pooler.dense"


def train(
    task: str | Task,
    model: str,
    config: RunConfig,
    out: str | os.PathLike[str],
    *,
    data: Data = None,
    also: Mapping[str, Data] | None = None,
    teacher: str | Mapping[str, str] | None = None,
    text_format: TextFormat = TextFormat(),
    context: RunContext = RunContext(),
    encode: Callable[..., Encoded] = encode,
) -> list[Record]:
    """Find a ticket for a task, or train the user's ticket, and return the records of the rounds.

    A ticket's mask of the pooler is dropped for tasks whose models have no pooler (SQuAD, masked language
    modelling), as in Chen et al. 2020. A configuration without a warm-up takes the method's, if it has one.

    Args:
        task: A task, or a name of ``sparsebert.tasks.TASKS``; ignored if ``data`` holds the examples of a
            task.
        model: Hub id or local folder of a pre-trained BERT.
        config: Method, sparsity, units, training and tickets.
        out: Folder of the run (:mod:`sparsebert.lottery.run_folder`). An interrupted run resumes there; a
            finished run is only read.
        data: A folder with the task's files, the examples of a task, or None for the hub.
        also: The other tasks of a method that works on several tasks, and their data.
        teacher: Hub id or folder of a model trained on the task, to distil from with the settings in
            ``config.distillation`` (None for the method's); with several tasks, teachers by task.
        text_format: Format in which the model reads examples; the method has its own template.
        context: Callbacks for progress, and for the time before the work starts.
        encode: :func:`sparsebert.tasks.encode`, or a version of it with a cache that several runs share.

    Raises:
        ValueError: In one line, for bad input, including blocks that do not divide the matrices.
        OSError: For files that cannot be read or written.
    """
    # Imported late: a finished run needs none of it.
    from sparsebert.lottery.loop import run

    distributed.join()
    main_task = task_of(task, data)
    others = _other_tasks(config, main_task, also or {})
    teachers = {main_task.name: teacher} if isinstance(teacher, str) else dict(teacher or {})
    names = _names(main_task, [each for each, _ in others], model, data, text_format)
    config = _with_teachers(config, teachers, [main_task.name, *(each.name for each, _ in others)])
    config = _without_absent_pooler(replace(config, names=names), main_task)
    config = with_defaults_of_method(config)
    folder = RunFolder(out)
    if folder.run_json.exists():
        config = as_begun(config, folder, context.say)
    if folder.run_json.exists() and folder.finished():
        folder.require(config.describe(), config.defaults())
        if distributed.is_main():
            folder.sweep()
            context.say(f"{folder.path} is finished: nothing to do")
        return folder.rounds_done()
    with heartbeat(context.say, lambda: f"preparing {main_task.name}: loading and encoding examples"):
        experiment = _assemble(main_task, others, model, config, data, teachers, text_format, encode)
    require_whole_blocks(experiment.model, config.units)
    if context.environment is None:
        context = replace(context, environment=detect().record())
    return run(experiment, config, out, context)


def _assemble(
    task: Task,
    others: Sequence[tuple[Task, Data]],
    model: str,
    config: RunConfig,
    data: Data,
    teachers: Mapping[str, str],
    text_format: TextFormat,
    encode: Callable[..., Encoded],
) -> Experiment:
    """Return the experiment of a task, or of several tasks."""
    seed = config.training.seed
    experiment = assemble(
        task,
        model,
        examples_of(task, data),
        seed,
        replace(text_format, template=getattr(config.method, "template", None)),
        label_words=label_words_of(config.method, task),
        teacher=teachers.get(task.name),
        encode=encode,
    )
    if not others:
        return experiment
    parts = {
        each.name: assemble(
            each,
            model,
            examples_of(each, source),
            seed,
            text_format.for_task(each),
            teacher=teachers.get(each.name),
            encode=encode,
        )
        for each, source in others
    }
    turns = getattr(config.method, "proportions", "equal")
    return multi_task_experiment({task.name: experiment, **parts}, turns)


def seeded(config: RunConfig, seed: int) -> RunConfig:
    """Return the same configuration with another seed."""
    return replace(config, training=replace(config.training, seed=seed))


def dense(config: RunConfig) -> RunConfig:
    """Return the configuration of the dense run for comparison: the same training, only from the labels.

    It has the warm-up of the method, if the run sets none.
    """
    plain = replace(with_defaults_of_method(config), distillation=None)
    return replace(
        plain,
        method=lottery_method("dense"),
        sparsity=0.0,
        units=PruningUnits(),
        ticket=None,
        start_ticket=None,
    )


def over_seeds(
    task: str | Task, runs: Sequence[Sequence[Record]], dense_runs: Sequence[Sequence[Record]] = ()
) -> list[Record]:
    """Summarise runs that differ only in their seeds, round by round.

    Sparsity and density are means, because some methods find a different sparsity for each seed.
    Resources are sums; the fingerprints of runs that differ are combined. The other fields are those of
    :func:`sparsebert.tasks.verdict.summarise`. A dense round gets no verdict.

    Args:
        task: The task.
        runs: Records of the rounds, one sequence per seed.
        dense_runs: Dense runs to compare with. If there are none, tickets are compared with the dense round
            that some methods begin with.

    Returns:
        The fields of one record per round.
    """
    with_dense_round = runs if runs[0][0]["source"] == "all" else ()
    references = [records[0] for records in dense_runs or with_dense_round]
    rows: list[Record] = []
    for number, first in enumerate(runs[0]):
        of_round = [records[number] for records in runs]
        row = {name: first[name] for name in ("method", "task", "model", "round")}
        if first.get("start_ticket"):
            row["start_ticket"] = first["start_ticket"]
        row |= {share: statistics.mean(each[share] for each in of_round) for share in ("sparsity", "density")}
        row["resources"] = total(each.get("resources") for each in of_round)
        row["fingerprints"] = _common_fingerprints(of_round)
        rows.append(row | summarise(primary(task), of_round, () if first["source"] == "all" else references))
    return rows


def _common_fingerprints(rounds: Sequence[Record]) -> Record:
    """Return the fingerprints of rounds by name; different ones are combined."""
    names = dict.fromkeys(name for row in rounds for name in row.get("fingerprints") or {})
    digests = {
        name: sorted({str((row.get("fingerprints") or {}).get(name)) for row in rounds}) for name in names
    }
    return {
        name: combined({str(place): digest for place, digest in enumerate(different)})
        for name, different in digests.items()
    }


def _names(task: Task, others: Sequence[Task], model: str, data: Data, text_format: TextFormat) -> Record:
    """Return the task, model and data for the description of a run."""
    names: Record = {"task": task.name, "model": short_name(model), **text_format.record(task)}
    if isinstance(data, TaskData) and not task.hub:
        names["data"] = dict(data.source)
    if others:
        names["also"] = [each.name for each in others]
    if task.model_labels:
        names["model_labels"] = list(task.model_labels)
    return names


def _other_tasks(config: RunConfig, task: Task, also: Mapping[str, Data]) -> list[tuple[Task, Data]]:
    """Return the other tasks of a run.

    Raises:
        ValueError: If the method needs other tasks or takes none, or a task is named twice.
    """
    method = config.method
    if method.multi_task and not also:
        raise ValueError(f"method {method.name} needs another task besides {task.name}: pass it as well")
    if also and not method.multi_task:
        raise ValueError(f"method {method.name} works on one task; omit the other tasks, keep {task.name}")
    others = [(task_of(name, data), data) for name, data in also.items()]
    if task.name in (each.name for each, _ in others):
        raise ValueError(f"task {task.name} is named twice; name each task once")
    if others and config.training.group_by_length:
        raise ValueError("group_by_length applies to a single task; omit it with several tasks")
    return others


def _with_teachers(config: RunConfig, teachers: Mapping[str, str], tasks: Sequence[str]) -> RunConfig:
    """Return the configuration with its teachers. Raises ValueError for a teacher of another task."""
    for name in teachers:
        if name not in tasks:
            raise ValueError(
                f"a teacher needs a task of the run, {' or '.join(tasks)}, got a teacher for {name}"
            )
    if not teachers:
        return config
    ids = {name: teacher_id(each) for name, each in teachers.items()}
    settings = config.distillation or config.method.distillation
    return replace(config, distillation=replace(settings, teachers=ids))


def _without_absent_pooler(config: RunConfig, task: Task) -> RunConfig:
    if has_pooler(task):
        return config
    if config.ticket is not None and POOLER in config.ticket.masks:
        return replace(config, ticket=_without_pooler(config.ticket), sparsity=None)
    if config.start_ticket is not None and POOLER in config.start_ticket.masks:
        return replace(config, start_ticket=_without_pooler(config.start_ticket))
    return config


def _without_pooler(ticket: Ticket) -> Ticket:
    return Ticket(
        {key: mask for key, mask in ticket.masks.items() if key != POOLER},
        bias_masks={key: mask for key, mask in ticket.bias_masks.items() if key != POOLER},
        removed=ticket.removed,
        metadata=ticket.metadata,
    )
