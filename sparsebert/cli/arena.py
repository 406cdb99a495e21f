"""The command `arena`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sparsebert.cli.baselines import list_baselines, usable_baselines
from sparsebert.cli.console import print_tables, progress
from sparsebert.cli.data_options import DataOptions
from sparsebert.cli.judging import Batch, DenseModel, Seed, Texts, TextsColumn, Threads, read_judging
from sparsebert.cli.option_groups import flattened
from sparsebert.cli.path_checks import require_picture, require_records
from sparsebert.cli.shared_options import JsonFile, TaskName, require_numbers

BASELINES = "onednn,bf16,onnxruntime-int8,openvino-int8,openvino-bf16,compile"
_MAX_BUDGET = 86_400  # a day


@flattened
def arena(
    model: DenseModel,
    texts: Texts,
    data: DataOptions,
    task: TaskName = None,
    texts_column: TextsColumn = None,
    vs: Annotated[
        str | None,
        typer.Option(
            help="other libraries to compare with, the main one first, or all; --vs help lists them; those "
            "that cannot run are named with their reasons [default: onednn, bf16, onnxruntime-int8, "
            "openvino-int8, openvino-bf16, compile]"
        ),
    ] = None,
    also: Annotated[
        list[Path] | None,
        typer.Option(
            "--also",
            metavar="<path>",
            help="also compare this ticket of the model, or this folder of a model made of it (repeatable)",
        ),
    ] = None,
    batch: Batch = 8,
    threads: Threads = 1,
    budget: Annotated[float, typer.Option(help="seconds of timed rounds")] = 20.0,
    seed: Seed = 0,
    json: JsonFile = None,
    plot: Annotated[Path | None, typer.Option(help="draw quality against time (.png, .svg or .pdf)")] = None,
) -> None:
    """Compare quality and speed of every form of a model: other libraries, dense engines, tickets.

    Every form runs the same batches of the user's texts. Its quality is that of its outputs on held-out
    texts: the mean cosine to the embeddings or logits of the dense model or, with --task or
    --validation-file, the task's metric above a constant guess. The table marks the Pareto front.
    """
    if vs == "help":
        return list_baselines()
    require_numbers({"--budget": budget}, least=0, most=_MAX_BUDGET)
    require_records("--json", json)
    require_picture("--plot", plot)
    for path in also or ():
        if not path.exists():
            raise ValueError(f"--also: {path} does not exist")
    baselines, missing = usable_baselines(BASELINES if vs is None else vs, required=False)
    lines, labels = read_judging(model, texts, texts_column, task, data, batch=batch)
    from sparsebert import results
    from sparsebert.bench import arena as comparison
    from sparsebert.bench.environment import detect
    from sparsebert.bench.judged_texts import prepare_judged_texts
    from sparsebert.bench.runner import Settings
    from sparsebert.report.arena_tables import arena_figure, arena_tables, comparisons

    with progress() as step:
        step(f"loading {model}")
        judged = prepare_judged_texts(model, lines, labels=labels, batch=batch, threads=threads, seed=seed)
        rows = comparison.run(
            judged,
            baselines,
            detect(),
            Settings(budget=budget),
            also=also or (),
            task=labels.task if labels else None,
            on_step=step,
            missing=missing,
        )
    if json is not None:
        results.append(json, rows)
    print_tables(arena_tables(rows))
    if plot is not None:
        from sparsebert.report.plots import save_figure

        for group in comparisons(rows):
            save_figure(arena_figure(group), plot)
        typer.echo(f"wrote {plot}")
