"""Options and set-up of the commands that judge a model on held-out texts: `arena` and `optimize`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sparsebert.cli.data_options import DataOptions
from sparsebert.cli.path_checks import require_files
from sparsebert.cli.shared_options import MAX_TOKENS, require_numbers

if TYPE_CHECKING:
    from sparsebert.bench.judged_texts import LabelledRows

DenseModel = Annotated[
    str,
    typer.Argument(help="dense model: hub id or folder; a sentence-transformers folder keeps its pooling"),
]
Texts = Annotated[
    Path,
    typer.Option(
        "--texts",
        help="texts like those the model will read (.txt, .csv, .tsv, .jsonl, .json, .parquet): they "
        "calibrate, set the lengths and, without labels, judge",
    ),
]
TextsColumn = Annotated[
    str | None, typer.Option(help="column of --texts [default: text, sentence or content]")
]
Batch = Annotated[int, typer.Option(help="texts per batch, as they come")]
Threads = Annotated[int, typer.Option(help="CPU threads")]
Seed = Annotated[int, typer.Option(help="seed of the division of the texts")]


def read_judging(
    model: str, texts: Path, column: str | None, task: str | None, data: DataOptions, *, batch: int
) -> tuple[list[str], LabelledRows | None]:
    """Return the texts, and the labelled rows that judge the model, if any.

    Raises:
        ValueError: A file is not readable, or the options of the labels do not fit.
        OSError: The model is missing.
    """
    from sparsebert.bench.workload import hush_transformers
    from sparsebert.tasks.texts import read_texts

    require_numbers({"--batch": batch}, most=MAX_TOKENS)
    require_files({"--texts": texts})
    hush_transformers()
    return read_texts(texts, column), _labelled_rows(model, task, data)


def _labelled_rows(model: str, task: str | None, data: DataOptions) -> LabelledRows | None:
    if task is None and not data.user_files:
        data.require_no_task()
        return None
    from sparsebert.bench.judged_texts import LabelledRows
    from sparsebert.tasks.models import head_labels
    from sparsebert.workflows.assemble import examples_of, task_of

    name = data.task_name(task)
    data.require_applicable_folder([name])
    source = data.source(name, head_labels(model, data.kind) if data.has_labels else None)
    examples = examples_of(data.mapped(task_of(name, source)), source, train=False)
    if examples.task.models_language:
        raise ValueError(f"--task {name} has no labels to judge by; omit it, or name a task with labels")
    rows = examples.validation[examples.task.splits[0]]
    return LabelledRows(examples.task, rows, data.text_format)
