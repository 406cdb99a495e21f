"""The command `eval`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sparsebert.cli.console import print_tables, progress
from sparsebert.cli.data_options import DataOptions
from sparsebert.cli.option_groups import ExecutionOptions, flattened
from sparsebert.cli.path_checks import require_records, require_writable
from sparsebert.cli.perturb_options import PerturbOptions
from sparsebert.cli.resource_options import ResourceOptions
from sparsebert.cli.shared_options import (
    JsonFile,
    TaskName,
    TicketFile,
    require_applicable,
    require_numbers,
    seed_list,
)
from sparsebert.cli.stamped import stamped

if TYPE_CHECKING:
    from sparsebert.results import Record


@flattened
def evaluate(
    model: Annotated[
        str, typer.Option(help="trained model: folder of a run, of runs by seed, or of a model, or a hub id")
    ],
    data: DataOptions,
    execution: ExecutionOptions,
    perturbations: PerturbOptions,
    resources: ResourceOptions,
    task: TaskName = None,
    ticket: TicketFile = None,
    seeds: Annotated[
        str | None, typer.Option("--seeds", help="for runs by seed: seeds to evaluate; all if omitted")
    ] = None,
    dense: Annotated[
        str | None, typer.Option(help="trained dense models to compare with, like --model")
    ] = None,
    compact: Annotated[
        bool, typer.Option("--compact", help="compact the model by --ticket, and report the changes")
    ] = False,
    min_row_weights: Annotated[
        int, typer.Option(help="with --compact: also remove rows with fewer weights (lossy)")
    ] = 0,
    predictions: Annotated[
        Path | None,
        typer.Option(
            help="write each example with its label, prediction and scores to this file, .csv or .jsonl"
        ),
    ] = None,
    json: JsonFile = None,
) -> None:
    """Evaluate a trained model on a task's validation data, optionally after applying a ticket."""
    require_records("--json", json)
    require_writable({"--json": json, "--predictions": predictions})
    if compact:
        given_too = {"--perturb": perturbations.perturb, "--predictions": predictions}
        require_applicable(given_too, "an evaluation without --compact")
    if compact and ticket is None:
        raise ValueError("--compact requires --ticket, the ticket to compact by")
    require_numbers({"--min-row-weights": min_row_weights}, least=0)
    given = {option: value for option, value in execution.given.items() if value is not None}
    if compact and given:
        raise ValueError(f"{next(iter(given))} runs a sparse model, --compact a dense one: omit one of them")
    if min_row_weights and not compact:
        raise ValueError(f"--min-row-weights {min_row_weights} requires --compact: add it")
    import torch

    from sparsebert import results
    from sparsebert.accounting.usage import total
    from sparsebert.bench.workload import hush_transformers
    from sparsebert.lottery.find_runs import trained_models
    from sparsebert.report.format import counted
    from sparsebert.report.resource_tables import resource_line
    from sparsebert.report.robustness_tables import robustness_tables
    from sparsebert.tasks.models import head_labels
    from sparsebert.workflows.assemble import examples_of, task_of
    from sparsebert.workflows.evaluation_records import EvaluationRecords
    from sparsebert.workflows.predictions import require_ending, write_predictions

    hush_transformers()
    account = resources.account(gpu=torch.cuda.is_available())
    if predictions is not None:
        require_ending(predictions)
    name = data.task_name(task)
    data.require_applicable_folder([name])
    numbers = None if seeds is None else seed_list(seeds)
    models = trained_models(model, numbers)
    dense_models = trained_models(dense, numbers) if dense else {}
    source = data.source(
        name, head_labels(next(iter(models.values())), data.kind) if data.has_labels else None
    )
    examples = examples_of(data.mapped(task_of(name, source)), source, train=False)
    if predictions is not None and examples.task.models_language:
        raise ValueError(f"--predictions needs a task with examples; {name} is language modelling: omit it")
    evaluation = EvaluationRecords(
        task=name,
        data=examples,
        model=model,
        dense=dense,
        ticket=ticket,
        text_format=data.text_format,
        sparse=execution.arguments() if given else None,
        min_row_weights=min_row_weights if compact else None,
        label_map=data.label_pairs,
        changes=perturbations.changes(),
        account=account,
        keep_predictions=predictions is not None,
    )
    with progress() as step:
        pruned_rows = [evaluation.evaluate(path, seed, progress=step) for seed, path in models.items()]
        dense_rows = [
            evaluation.evaluate(path, seed, dense=True, progress=step) for seed, path in dense_models.items()
        ]
    rows = [stamped("eval", row) for row in pruned_rows]
    _print_metrics(rows)
    used = total(row["resources"] for row in [*pruned_rows, *dense_rows])
    if len(rows) > 1 or dense_rows:
        rows.append({**_summary_row(examples.task.metric, rows, dense_rows), "resources": used})
    robustness = [stamped("robustness", row) for row in evaluation.robustness]
    if robustness:
        print_tables(robustness_tables(robustness))
    if predictions is not None:
        write_predictions(predictions, evaluation.predictions)
        typer.echo(f"{counted(len(evaluation.predictions), 'prediction')}: {predictions}")
    typer.echo(resource_line({"resources": used}))
    if json is not None:
        results.append(json, [*rows, *robustness])


def _print_metrics(rows: Sequence[Record]) -> None:
    """Print the metrics of each model, after the format of the examples."""
    for line in dict.fromkeys(_format_text(row) for row in rows):
        typer.echo(line)
    for row in rows:
        of_seed = f" (seed {row['seed']})" if len(rows) > 1 else ""
        typer.echo("\n".join(f"{key} {value:.4f}{of_seed}" for key, value in row["metrics"].items()))
        if "compaction" in row:
            typer.echo(_compaction_text(row))


def _format_text(row: Record) -> str:
    """Return a line about the length of the examples, and how it differs from that in training."""
    used, trained = row["text_format"], row["trained_text_format"]
    others = [_setting_text(name, value) for name, value in used.items() if name != "max_length"]
    text = ", ".join([f"{row['task']}: examples of at most {used['max_length']} tokens", *others])
    if trained is None:
        return f"{text}; the model does not record the format of its training"
    names = [name for name in dict.fromkeys([*used, *trained]) if used.get(name) != trained.get(name)]
    different = ", ".join(_setting_text(name, trained.get(name)) for name in names)
    return f"{text}; in training {different}" if different else f"{text}, as in training"


def _setting_text(name: str, value: object) -> str:
    """Return a field of a text format in words."""
    words = name.replace("_", " ")
    if value is True:
        return words
    return f"no {words}" if value is None or value is False else f"{words} {value}"


def _summary_row(metric: str, rows: Sequence[Record], dense_rows: Sequence[Record]) -> Record:
    """Print the mean over the models and the verdict against the dense ones, and return their record."""
    from sparsebert.report.format import mean_and_verdict, mean_text, verdict_notes
    from sparsebert.tasks.verdict import summarise

    summary = summarise(metric, rows, dense_rows)
    task, model = rows[0]["task"], rows[0]["model"]
    typer.echo(f"{metric} {mean_and_verdict(summary)}")
    if dense_rows:
        typer.echo(f"dense {metric} {mean_text(summary['dense_mean'], summary['dense_std'])}")
    for note in verdict_notes([{"task": task, **summary}]):
        typer.echo(note)
    return stamped("eval_seeds", {"task": task, "model": model, **summary})


def _compaction_text(row: Record) -> str:
    """Return a line about the weights that compaction kept, and the change of the outputs by compaction."""
    weights, change = row["compaction"]["weights"], row["compaction"]["output_change"]
    least = row["compaction"]["min_row_weights"]
    exact, stored = (weights[name] / weights["configured"] for name in ("exact", "stored"))
    kind = f"lossy, rows of at least {least} weights" if least else "exact"
    masked = ", ".join(f"{name} {value:.4f}" for name, value in row["masked_metrics"].items())
    return (
        f"compacted ({kind}): {exact:.2%} of the encoder's weights, {stored:.2%} stored; "
        f"masked only: {masked}; outputs differ by at most {change['max']:.2g}, "
        f"{change['mean']:.2g} on average; {change['changed']:.2%} of the predictions change"
    )
