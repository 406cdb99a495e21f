"""The command `train`."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sparsebert.cli.console import print_tables, say
from sparsebert.cli.data_options import DataOptions
from sparsebert.cli.method_options import MethodOptions
from sparsebert.cli.option_groups import DistillationOptions, UnitOptions, flattened
from sparsebert.cli.path_checks import require_folders, require_records
from sparsebert.cli.shared_options import JsonFile, PretrainedModel, Seeds, TaskName, TicketFile, seed_list
from sparsebert.cli.stamped import stamped
from sparsebert.training.settings import TrainingSettings

if TYPE_CHECKING:
    from sparsebert.lottery.experiment import RunConfig
    from sparsebert.lottery.run_folder import Record
    from sparsebert.tasks import Task


@flattened
def train(
    model: PretrainedModel,
    data: DataOptions,
    units: UnitOptions,
    training: TrainingSettings,
    options: MethodOptions,
    distillation: DistillationOptions,
    task: TaskName = None,
    method: Annotated[
        str,
        typer.Option(
            help="imp, standard, one-shot, magnitude-search, snip, snip-imp, importance, importance-search, "
            "early-bird, super-tickets, cap-structured, random, dense; masks learned in training: gradual, "
            "movement, soft-movement, l0, smp (Static Model Pruning), cap, cap-soft (contrastive pruning); "
            "with --ticket: ticket, random-layerwise, random-reinit, shuffled, bad-weights, random-weights, "
            "bad-units, random-units; with --also: multi-task"
        ),
    ] = "imp",
    also: Annotated[
        str | None, typer.Option(help="multi-task: the other tasks, such as wikitext-2 or mrpc,cola")
    ] = None,
    sparsity: Annotated[
        float | None,
        typer.Option(
            help="sparsity of the ticket, from 0 to below 1; omit it with --ticket and with methods that "
            "decide the sparsity"
        ),
    ] = None,
    ticket: TicketFile = None,
    start_ticket: Annotated[
        Path | None,
        typer.Option(
            help="start from this ticket instead of the dense model: a ticket file, the folder of a run, or "
            "the folder that prune --texts wrote; for imp, standard, multi-task, importance, "
            "importance-search, gradual, movement, soft-movement, smp, cap and cap-soft"
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="folder of the run; an interrupted run resumes there")
    ] = None,
    seeds: Seeds = "0",
    dense: Annotated[
        Path | None, typer.Option(help="folder of dense runs to compare with; missing ones are trained")
    ] = None,
    json: JsonFile = None,
) -> None:
    """Find a ticket for a task, or train an existing ticket.

    An interrupted run resumes when you start it again. Omitted options of a method take its defaults.
    """
    numbers = seed_list(seeds)
    require_records("--json", json)
    require_folders({"--out": out, "--dense": dense})
    import sparsebert.workflows.train as workflow
    from sparsebert.bench.workload import hush_transformers
    from sparsebert.lottery.find_runs import model_for_each
    from sparsebert.lottery.run_context import RunContext
    from sparsebert.tasks import EncodedOnce
    from sparsebert.tasks.models import short_name
    from sparsebert.training import distributed
    from sparsebert.workflows.assemble import load_once, task_of

    hush_transformers()
    name = data.task_name(task)
    other_tasks = [each.strip() for each in also.split(",")] if also else []
    data.require_applicable_folder([name, *other_tasks])
    source = data.source(name)
    other_sources = {each: data.source(each) for each in other_tasks}
    config = _run_config(
        model, method, options, sparsity, units, training, ticket, start_ticket, distillation
    )
    teachers = {
        each: model_for_each(path, numbers) for each, path in distillation.by_task(name, other_tasks).items()
    }
    folder = out or Path("runs") / _folder_name(name, short_name(model), config, seeds)
    folders = {seed: folder / f"seed-{seed}" if len(numbers) > 1 else folder for seed in numbers}
    dense_folders = {seed: dense / f"seed-{seed}" for seed in numbers} if dense is not None else {}
    main_task = data.mapped(task_of(name, source))
    examples = load_once([*folders.values(), *dense_folders.values()], main_task, source)
    # Loaded once for all seeds, like the main task's: the cache of encoded examples knows them by identity.
    other_examples = {
        each: load_once(folders.values(), task_of(each, other), other)
        for each, other in other_sources.items()
    }
    train_run = partial(
        workflow.train, main_task, model, data=examples, text_format=data.text_format, encode=EncodedOnce()
    )
    contexts = {seed: RunContext(say) for seed in numbers}
    contexts[numbers[0]] = RunContext(say, _print_speed_estimate)  # all seeds have the same estimate
    if len(numbers) > 1:
        contexts = {seed: context.of_run(f"seed {seed}") for seed, context in contexts.items()}
    runs = [
        train_run(
            workflow.seeded(config, seed),
            folders[seed],
            also=other_examples,
            teacher={each: by_seed[seed] for each, by_seed in teachers.items()},
            context=contexts[seed],
        )
        for seed in numbers
    ]
    dense_runs = [
        train_run(
            workflow.dense(workflow.seeded(config, seed)),
            dense_folder,
            context=RunContext(say).of_run(f"dense, seed {seed}"),
        )
        for seed, dense_folder in dense_folders.items()
    ]
    if distributed.is_main():
        _report(main_task, runs, dense_runs, json)
        typer.echo(f"tickets, run log and trained model: {folder}")


def _run_config(
    model: str,
    method: str,
    options: MethodOptions,
    sparsity: float | None,
    units: UnitOptions,
    training: TrainingSettings,
    ticket: Path | None,
    start_ticket: Path | None,
    distillation: DistillationOptions,
) -> RunConfig:
    """Return the configuration that all seeds share. Raises ValueError for options that do not fit."""
    from sparsebert.lottery.experiment import RunConfig
    from sparsebert.lottery.find_runs import load_ticket
    from sparsebert.lottery.method import lottery_method
    from sparsebert.pruning.pruning_units import PruningUnits
    from sparsebert.tasks.models import skeleton

    lottery = lottery_method(method, **vars(options))
    return RunConfig(
        lottery,
        0.0 if method == "dense" and sparsity is None else sparsity,
        PruningUnits(**units.arguments(lottery.granularity, lottery.scope)),
        training,
        load_ticket(ticket, skeleton(model)) if ticket else None,
        distillation=distillation.settings(),
        start_ticket=load_ticket(start_ticket, skeleton(model)) if start_ticket else None,
    )


def _report(
    task: Task, runs: Sequence[list[Record]], dense_runs: Sequence[list[Record]], json: Path | None
) -> None:
    """Print the rounds of all runs, with a summary over seeds, and append them to the file of --json."""
    from sparsebert import results
    from sparsebert.report.run_tables import run_tables
    from sparsebert.workflows.train import over_seeds

    rows = [row for rounds in runs for row in rounds]
    if len(runs) > 1 or dense_runs:
        rows += [stamped("seeds", fields) for fields in over_seeds(task, runs, dense_runs)]
    if json is not None:
        results.append(json, rows)
    print_tables(run_tables(rows))


def _folder_name(task: str, model: str, config: RunConfig, seeds: str) -> str:
    """Return the default name of the folder of a run, for use without --out."""
    sparsity = f"-{float(config.target) * 100:g}" if config.target else ""
    start = config.start_ticket
    origin = f"-from-{start.sparsity * 100:.3g}" if start is not None else ""
    name = f"{task}-{model.replace('/', '-')}-{config.method.name}{sparsity}{origin}"
    return f"{name}-seed-{seeds.replace(',', '-')}"


def _print_speed_estimate(model: Any, config: RunConfig) -> None:
    """Print the estimated speedup of a ticket before its training."""
    from sparsebert.lottery.speed_estimate import estimate_speedup

    for line in estimate_speedup(model, config):
        typer.echo(line)
