"""The command `optimize`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sparsebert.cli.console import print_tables, progress
from sparsebert.cli.data_options import DataOptions
from sparsebert.cli.judging import Batch, DenseModel, Seed, Texts, TextsColumn, Threads, read_judging
from sparsebert.cli.option_groups import flattened
from sparsebert.cli.path_checks import require_folders, require_records
from sparsebert.cli.resource_options import ResourceOptions
from sparsebert.cli.shared_options import (
    JsonFile,
    TaskName,
    comma_separated,
    require_numbers,
    require_share,
)

_MAX_BUDGET = 86_400  # a day


@flattened
def optimize(
    model: DenseModel,
    texts: Texts,
    output: Annotated[Path, typer.Option("--out", "--output", help="folder to write")],
    data: DataOptions,
    resources: ResourceOptions,
    keep: Annotated[float, typer.Option(help="bound on quality after / before, up to 1")] = 0.99,
    task: TaskName = None,
    texts_column: TextsColumn = None,
    precisions: Annotated[str, typer.Option(help="precisions to try: fp32, bf16, int8")] = "fp32,bf16,int8",
    granularities: Annotated[
        str,
        typer.Option(
            help='granularities to try, separated by blanks, such as "element 4x1 neuron"; none: dense forms '
            "alone"
        ),
    ] = "element panel(32,2) panel(32,4) neuron",
    method: Annotated[
        str,
        typer.Option(help="one-shot method for weights: alps, sparsegpt, wanda or obs; ziplm prunes units"),
    ] = "alps",
    heal_minutes: Annotated[
        float,
        typer.Option(
            help="minutes to train the kept weights on the texts, at each of about four sparsities of a "
            "granularity; 0: no training"
        ),
    ] = 0.0,
    batch: Batch = 8,
    threads: Threads = 1,
    budget: Annotated[float, typer.Option(help="seconds of each timing")] = 3.0,
    seed: Seed = 0,
    json: JsonFile = None,
) -> None:
    """Write the fastest form of a model on this machine whose quality stays above --keep.

    Searches sparsity, granularity and precision by calibrated one-shot pruning, without labels. Quality is
    the mean cosine to the dense model's embeddings or logits on held-out texts or, with --task or
    --validation-file, the task's metric above a constant guess (lower end of a 90 % interval) as a share of
    the dense model's. The verdict is given on texts that the search has not seen. A search that is killed
    goes on where it was.
    """
    require_share("--keep", keep)
    require_numbers({"--budget": budget, "--heal-minutes": heal_minutes}, least=0, most=_MAX_BUDGET)
    if output.exists():
        raise ValueError(f"output folder {output} already exists; choose another")
    require_folders({"--out": output.parent})
    require_records("--json", json)
    account = resources.account()
    names = [] if granularities.strip() == "none" else granularities.split()
    tried = comma_separated("--precisions", precisions)
    lines, labels = read_judging(model, texts, texts_column, task, data, batch=batch)
    from sparsebert import results
    from sparsebert.report.optimize_tables import optimize_tables
    from sparsebert.report.resource_tables import resource_line
    from sparsebert.workflows.optimize import optimize as search

    with progress() as step:
        result = search(
            model,
            lines,
            keep=keep,
            out=output,
            labels=labels,
            precisions=tried,
            granularities=names,
            method=method,
            heal_minutes=heal_minutes,
            batch=batch,
            threads=threads,
            budget=budget,
            seed=seed,
            on_step=step,
            account=account,
        )
    if json is not None:
        results.append(json, result.records)
    print_tables(optimize_tables(result.records))
    typer.echo(resource_line(next(row for row in result.records if row["chosen"])))
    typer.echo(f"wrote {output}: {result.note}")
