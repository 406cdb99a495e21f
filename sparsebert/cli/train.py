"""The commands `train` and `eval`; heavy modules are imported when they run."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sparsebert.cli.method_options import MethodOptions
from sparsebert.cli.option_groups import (
    DataOptions,
    DistillationOptions,
    JsonFile,
    PretrainedModel,
    Seeds,
    TaskName,
    TicketFile,
    UnitOptions,
    flattened,
    print_tables,
    say,
    seed_list,
)
from sparsebert.cli.path_checks import require_folders, require_records
from sparsebert.training.settings import TrainingSettings

if TYPE_CHECKING:
    from sparsebert.lottery.experiment import RunConfig
    from sparsebert.tasks import TaskData


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
            "early-bird, super-tickets, cap-structured, random, dense; learned in training: gradual, "
            "movement, soft-movement, l0, smp (Static Model Pruning), cap, cap-soft (contrastive pruning); "
            "on a given ticket: ticket, random-layerwise, random-reinit, shuffled, bad-weights, "
            "random-weights, bad-units, random-units; on several tasks: multi-task (--also)"
        ),
    ] = "imp",
    also: Annotated[
        str | None, typer.Option(help="multi-task: the other tasks, such as wikitext-2 or mrpc,cola")
    ] = None,
    sparsity: Annotated[
        float | None,
        typer.Option(
            help="share of zeros to reach, below 1; not for a --ticket and methods that decide it themselves"
        ),
    ] = None,
    ticket: TicketFile = None,
    out: Annotated[
        Path | None, typer.Option(help="folder of the run; it goes on where it was killed")
    ] = None,
    seeds: Seeds = "0",
    dense: Annotated[
        Path | None, typer.Option(help="folder of dense runs to judge by; those it lacks are made")
    ] = None,
    json: JsonFile = None,
) -> None:
    """Find a ticket on a task, or train one that is given. What is killed goes on when started again.

    Where an option of a method is not given, the method's own default holds.
    """
    chosen = seed_list(seeds)
    require_records("--json", json)
    require_folders({"--out": out, "--dense": dense})
    import sparsebert.workflows.train as library
    from sparsebert import results
    from sparsebert.bench.workload import hush_transformers
    from sparsebert.lottery.experiment import PruningUnits, RunConfig
    from sparsebert.lottery.find_runs import load_ticket, model_for_each
    from sparsebert.lottery.method import lottery_method
    from sparsebert.report.run_tables import run_tables
    from sparsebert.tasks import EncodedOnce
    from sparsebert.tasks.models import short_name, skeleton
    from sparsebert.training import distributed

    hush_transformers()
    name = data.task_name(task)
    source = data.source(name)
    others = [each.strip() for each in also.split(",")] if also else []
    sources = {each: data.source(each) for each in others}
    chosen_method = lottery_method(method, **vars(options))
    request = RunConfig(
        chosen_method,
        0.0 if method == "dense" and sparsity is None else sparsity,
        PruningUnits(**units.arguments(chosen_method.granularity, chosen_method.scope)),
        training,
        load_ticket(ticket, skeleton(model)) if ticket else None,
        distillation=distillation.settings(),
    )
    requests = [library.seeded(request, seed) for seed in chosen]
    teachers = {
        each: model_for_each(path, chosen) for each, path in distillation.by_task(name, others).items()
    }
    folder = out or Path("runs") / _name(name, short_name(model), request, seeds)
    folders = {seed: folder / f"seed-{seed}" if len(chosen) > 1 else folder for seed in chosen}
    dense_folders = {seed: dense / f"seed-{seed}" for seed in chosen} if dense is not None else {}
    known, encode = library.task_of(name, source), EncodedOnce()
    examples = library.read_for([*folders.values(), *dense_folders.values()], known, source)

    def carry_out(
        request: RunConfig,
        to: Path,
        also: dict[str, Path | TaskData | None] | None = None,
        teacher: dict[str, str] | None = None,
    ) -> list[dict[str, Any]]:
        return library.train(
            name,
            model,
            request,
            to,
            data=examples,
            also=also,
            teacher=teacher,
            max_length=data.max_length,
            say=say,
            before=_say_gain if request is requests[0] else _say_nothing,
            encode=encode,
        )

    runs = [
        carry_out(
            each,
            folders[seed],
            sources,
            {task: by_seed[seed] for task, by_seed in teachers.items()},
        )
        for seed, each in zip(chosen, requests, strict=True)
    ]
    dense_runs = [
        carry_out(library.dense(each), dense_folders[each.training.seed])
        for each in requests
        if dense_folders
    ]
    if not distributed.is_main():
        return
    rows = [row for run in runs for row in run]
    if len(runs) > 1 or dense_runs:
        judged = library.over_seeds(known, runs, dense_runs)
        rows += [results.stamp("seeds", fields) for fields in judged]
    if json is not None:
        results.append(json, rows)
    print_tables(run_tables(rows))
    typer.echo(f"tickets, run log and trained model: {folder}")


@flattened
def evaluate(
    model: Annotated[
        str, typer.Option(help="a trained model: a run's folder, one of runs by seed, a model's, or a hub id")
    ],
    data: DataOptions,
    task: TaskName = None,
    ticket: TicketFile = None,
    seeds: Annotated[
        str | None, typer.Option("--seeds", help="which of the runs by seed; all of them without it")
    ] = None,
    dense: Annotated[str | None, typer.Option(help="trained dense models to judge by, as --model")] = None,
    compact: Annotated[
        bool, typer.Option("--compact", help="take out what --ticket empties, and say what is left")
    ] = False,
    min_row_weights: Annotated[
        int, typer.Option(min=0, help="with --compact, lossy: rows with fewer weights go too")
    ] = 0,
    json: JsonFile = None,
) -> None:
    """Metrics of a trained model on a task's validation data, with a ticket applied first if one is given."""
    require_records("--json", json)
    if compact and ticket is None:
        raise ValueError("--compact takes out what a ticket empties: it needs --ticket")
    if min_row_weights and not compact:
        raise ValueError(f"--min-row-weights {min_row_weights} needs --compact")
    from sparsebert import results
    from sparsebert.bench.workload import hush_transformers
    from sparsebert.lottery.find_runs import load_ticket, trained_models
    from sparsebert.report.format import mean_and_verdict
    from sparsebert.tasks.metrics import summarise
    from sparsebert.tasks.models import head_labels, short_name, skeleton
    from sparsebert.workflows.train import evaluate as evaluate_model
    from sparsebert.workflows.train import evaluate_compacted, task_of

    hush_transformers()
    name = data.task_name(task)
    chosen = None if seeds is None else seed_list(seeds)
    models = trained_models(model, chosen)
    judges = trained_models(dense, chosen) if dense else {}
    source = data.source(name, head_labels(next(iter(models.values()))) if data.own else None)

    def evaluated(seed: int | None, path: str, ticket: Path | None) -> dict[str, Any]:
        pruned = load_ticket(ticket, skeleton(path)) if ticket else None
        examples: dict[str, Any] = {"data": source, "max_length": data.max_length}
        if compact and pruned:
            found = evaluate_compacted(name, path, pruned, min_row_weights=min_row_weights, **examples)
        else:
            found = {"metrics": evaluate_model(name, path, ticket=pruned, **examples)}
        sparsity = pruned.sparsity if pruned else None
        fields = {"model": short_name(model), "seed": seed, "sparsity": sparsity}
        return results.stamp("eval", {"task": name, **fields, **found})

    rows = [evaluated(seed, path, ticket) for seed, path in models.items()]
    for row in rows:
        of_seed = f" (seed {row['seed']})" if len(rows) > 1 else ""
        typer.echo("\n".join(f"{key} {value:.4f}{of_seed}" for key, value in row["metrics"].items()))
        if "compaction" in row:
            typer.echo(_what_it_cost(row))
    if len(rows) > 1 or judges:
        dense_rows = [evaluated(seed, path, None) for seed, path in judges.items()]
        summary = summarise(task_of(name, source).metric, rows, dense_rows)
        rows.append(results.stamp("eval_seeds", {"task": name, "model": short_name(model), **summary}))
        typer.echo(f"{summary['metric']} {mean_and_verdict(summary)}")
    if json is not None:
        results.append(json, rows)


def _what_it_cost(row: dict[str, Any]) -> str:
    """What compaction left of a model, and how far its answers are from those of the masked one."""
    weights, change = row["compaction"]["weights"], row["compaction"]["output_change"]
    least = row["compaction"]["min_row_weights"]
    exact, stored = (weights[name] / weights["configured"] for name in ("exact", "stored"))
    kind = f"lossy, rows of at least {least} weights" if least else "exact"
    masked = ", ".join(f"{name} {value:.4f}" for name, value in row["masked_metrics"].items())
    return (
        f"compacted ({kind}): {exact:.2%} of the encoder's weights, {stored:.2%} stored; "
        f"only masked: {masked}; answers differ by at most {change['max']:.2g}, "
        f"{change['mean']:.2g} on average, {change['changed']:.2%} are other ones"
    )


def _name(task: str, model: str, request: RunConfig, seeds: str) -> str:
    """A folder for a run that was given none."""
    share = f"-{float(request.target) * 100:g}" if request.target else ""
    return f"{task}-{model.replace('/', '-')}-{request.method.name}{share}-seed-{seeds.replace(',', '-')}"


def _say_gain(model: Any, request: RunConfig) -> None:
    from sparsebert.lottery.speed_estimate import estimate_speedup

    for line in estimate_speedup(model, request):
        typer.echo(line)


def _say_nothing(model: Any, request: RunConfig) -> None:
    pass
