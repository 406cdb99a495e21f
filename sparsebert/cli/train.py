"""The command `train`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sparsebert.cli.console import print_tables, say
from sparsebert.cli.data_options import DataOptions
from sparsebert.cli.method_options import MethodOptions
from sparsebert.cli.option_groups import DistillationOptions, UnitOptions, flattened
from sparsebert.cli.path_checks import require_folders, require_records
from sparsebert.cli.resource_options import ResourceOptions
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
    resources: ResourceOptions,
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
    carbon_intensity = resources.account(gpu=training.on_gpu).carbon_intensity
    from sparsebert.bench.workload import hush_transformers
    from sparsebert.cli.train_runs import TrainRuns
    from sparsebert.lottery.run_context import RunContext
    from sparsebert.training import distributed
    from sparsebert.workflows.example_cache import ExampleCache

    hush_transformers()
    requested = TrainRuns(
        model=model,
        data=data,
        units=units,
        training=training,
        options=options,
        distillation=distillation,
        task=task,
        method=method,
        also=also,
        sparsity=sparsity,
        ticket=ticket,
        start_ticket=start_ticket,
    )
    examples = ExampleCache()
    requested.sources(examples)  # Its problems come before those of models and tickets.
    folder = out or Path("runs") / requested.folder_name(seeds)
    folders = {seed: folder / f"seed-{seed}" if len(numbers) > 1 else folder for seed in numbers}
    dense_folders = {seed: dense / f"seed-{seed}" for seed in numbers} if dense is not None else {}
    context = RunContext(say, _print_speed_estimate, carbon_intensity=carbon_intensity)
    done = requested.carry_out(folders, dense_folders, context, examples)
    if distributed.is_main():
        _report(done.task, done.runs, done.dense_runs, json)
        typer.echo(f"tickets, run log and trained model: {folder}")


def _report(
    task: Task, runs: Sequence[list[Record]], dense_runs: Sequence[list[Record]], json: Path | None
) -> None:
    """Print the rounds of all runs, with a summary over seeds, and append them to the file of --json."""
    from sparsebert import results
    from sparsebert.report.resource_tables import resource_tables
    from sparsebert.report.run_tables import run_tables
    from sparsebert.workflows.train import over_seeds

    rows = [row for rounds in runs for row in rounds]
    if len(runs) > 1 or dense_runs:
        rows += [stamped("seeds", fields) for fields in over_seeds(task, runs, dense_runs)]
    if json is not None:
        results.append(json, rows)
    print_tables([*run_tables(rows), *resource_tables(rows)])


def _print_speed_estimate(model: Any, config: RunConfig) -> None:
    """Print the estimated speedup of a ticket before its training."""
    from sparsebert.lottery.speed_estimate import estimate_speedup

    for line in estimate_speedup(model, config):
        typer.echo(line)
