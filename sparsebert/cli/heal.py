"""The command `heal`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sparsebert.cli.console import progress
from sparsebert.cli.data_options import DataOptions
from sparsebert.cli.option_groups import flattened
from sparsebert.cli.path_checks import require_files, require_folders, require_records
from sparsebert.cli.resource_options import ResourceOptions
from sparsebert.cli.shared_options import TASK_NAMES, JsonFile, TicketFile, require_applicable, require_seed
from sparsebert.cli.stamped import stamped

if TYPE_CHECKING:
    from sparsebert.healing.texts import Text


@flattened
def heal(
    model: Annotated[
        str, typer.Argument(help="pruned model, or dense model with --ticket: folder or hub id")
    ],
    output: Annotated[Path, typer.Option(help="new folder of the healed model")],
    data: DataOptions,
    resources: ResourceOptions,
    texts: Annotated[
        Path | None,
        typer.Option("--texts", help="texts without labels: .txt, .csv, .tsv, .jsonl, .json or .parquet"),
    ] = None,
    task: Annotated[
        str | None,
        typer.Option(help=f"in place of --texts, the training texts of a task: {TASK_NAMES}"),
    ] = None,
    teacher: Annotated[
        str | None,
        typer.Option(
            help="dense model to reproduce: folder or hub id; with --ticket, MODEL before pruning if omitted"
        ),
    ] = None,
    ticket: TicketFile = None,
    minutes: Annotated[float | None, typer.Option(help="wall time to fill [default: 10]")] = None,
    steps: Annotated[
        int | None,
        typer.Option(help="optimizer steps, instead of --minutes: the same result in every run on a machine"),
    ] = None,
    texts_column: Annotated[
        str | None,
        typer.Option(
            help="column of --texts, or two columns of texts that the model reads together: "
            "premise,hypothesis [default: text, sentence or content]"
        ),
    ] = None,
    learning_rate: Annotated[
        float | None,
        typer.Option(help="peak learning rate; chosen on held-out texts if omitted"),
    ] = None,
    embeddings: Annotated[
        bool, typer.Option("--embeddings/--no-embeddings", help="also train the embeddings")
    ] = True,
    precision: Annotated[
        str, typer.Option(help="precision of matrix products in training: auto, bf16 or fp32")
    ] = "auto",
    seed: Annotated[int, typer.Option(help="seed of the split and the order of the texts")] = 0,
    json: JsonFile = None,
) -> None:
    """Train a pruned model's kept weights, without labels, until it answers as the dense model does.

    Pruned weights stay zero. The model learns the dense model's hidden states, and its sentence embeddings
    or, for classifiers and question answering, its logits. A tenth of the texts decides which state is kept:
    on them, neither its loss nor its outputs are worse than those of the start. Another tenth only judges it.
    A run that was killed goes on where it was when the command is repeated. Of a --task or --train-file, the
    texts of the training examples are read, not their labels.
    """
    if steps is not None and minutes is not None:
        raise ValueError("--steps conflicts with --minutes: both set the length of the training; omit one")
    require_seed("--seed", seed)
    with_task = task is not None or data.user_files
    if texts is None and not with_task:
        raise ValueError("--texts is missing: pass a file of texts, or a --task or --train-file")
    if with_task:
        unlabelled = {"--texts": texts, "--texts-column": texts_column}
        require_applicable(unlabelled, "unlabelled texts, without --task and --train-file")
    else:
        data.require_no_task(texts=True)
    require_applicable(data.of_questions, "commands that answer questions")
    require_files({"--texts": texts})
    if output.exists():
        raise ValueError(f"output folder {output} already exists; choose another")
    require_folders({"--output": output})
    require_records("--json", json)
    account = resources.account()
    from sparsebert import results
    from sparsebert.bench.workload import hush_transformers
    from sparsebert.healing.settings import HealingSettings
    from sparsebert.lottery.find_runs import load_ticket
    from sparsebert.report.healing_tables import healing_lines
    from sparsebert.report.resource_tables import resource_line
    from sparsebert.tasks.models import skeleton
    from sparsebert.workflows.heal import checkpoint_of
    from sparsebert.workflows.heal import heal as heal_model

    settings = HealingSettings(
        minutes=10.0 if minutes is None else minutes,
        steps=steps,
        learning_rate=learning_rate,
        max_length=data.max_length,
        embeddings=embeddings,
        precision=precision,
        seed=seed,
    )
    hush_transformers()
    read = _read(texts, texts_column) if texts is not None else _training_texts(task, data)
    with progress() as step, account.metered(output, unfinished=[checkpoint_of(output)]):
        healing = heal_model(
            model,
            output,
            read,
            teacher=teacher,
            ticket=load_ticket(ticket, skeleton(model)) if ticket is not None else None,
            settings=settings,
            progress=step,
            account=account,
        )
    name = data.task_name(task) if with_task else None
    fields = {"model": model, "task": name, "teacher": teacher, "output": str(output), **healing.record()}
    fields |= account.record()
    if json is not None:
        results.append(json, [stamped("heal", fields)])
    typer.echo("\n".join([*healing_lines(fields), resource_line(fields), f"wrote {output}"]))


def _read(texts: Path, column: str | None) -> list[Text]:
    """Return the texts of a file, or the pairs of two of its columns."""
    from sparsebert.tasks.texts import read_pairs, read_texts

    columns = [part.strip() for part in (column or "").split(",")]
    if len(columns) > 2 or (len(columns) == 2 and not all(columns)):
        raise ValueError(f"--texts-column takes one column, or two: a,b; got {column!r}")
    if len(columns) == 2:
        return [*read_pairs(texts, (columns[0], columns[1]))]
    return [*read_texts(texts, column)]


def _training_texts(task: str | None, data: DataOptions) -> list[Text]:
    """Return the texts of a task's training examples."""
    from sparsebert.tasks.texts import texts_of
    from sparsebert.workflows.assemble import examples_of, task_of

    name = data.task_name(task)
    data.require_applicable_folder([name])
    source = data.source(name, validates=False)
    return texts_of(examples_of(data.mapped(task_of(name, source)), source).train)
