"""The command `heal`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sparsebert.cli.console import progress
from sparsebert.cli.path_checks import require_files, require_folders, require_records
from sparsebert.cli.shared_options import JsonFile, TicketFile, require_seed
from sparsebert.cli.stamped import stamped


def heal(
    model: Annotated[
        str, typer.Argument(help="pruned model, or dense model with --ticket: folder or hub id")
    ],
    texts: Annotated[
        Path,
        typer.Option("--texts", help="texts without labels: .txt, .csv, .tsv, .jsonl, .json or .parquet"),
    ],
    output: Annotated[Path, typer.Option(help="new folder of the healed model")],
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
    max_length: Annotated[
        int | None, typer.Option(help="tokens at which a text is cut [default: 128, or the model's maximum]")
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
    or, for classifiers and question answering, its logits. A tenth of the texts decides which state is kept,
    so that the result is never worse than the start, and another tenth judges it. A run that was killed goes
    on where it was when the command is repeated.
    """
    if steps is not None and minutes is not None:
        raise ValueError("--steps conflicts with --minutes: both set the length of the training; omit one")
    require_seed("--seed", seed)
    require_files({"--texts": texts})
    if output.exists():
        raise ValueError(f"output folder {output} already exists; choose another")
    require_folders({"--output": output})
    require_records("--json", json)
    from sparsebert import results
    from sparsebert.bench.workload import hush_transformers
    from sparsebert.healing.settings import HealingSettings
    from sparsebert.lottery.find_runs import load_ticket
    from sparsebert.report.healing_tables import healing_lines
    from sparsebert.tasks.models import skeleton
    from sparsebert.tasks.texts import read_pairs, read_texts
    from sparsebert.workflows.heal import heal as heal_model

    columns = tuple(part.strip() for part in (texts_column or "").split(","))
    if len(columns) > 2 or (len(columns) == 2 and not all(columns)):
        raise ValueError(f"--texts-column takes one column, or two: a,b; got {texts_column!r}")
    settings = HealingSettings(
        minutes=10.0 if minutes is None else minutes,
        steps=steps,
        learning_rate=learning_rate,
        max_length=max_length,
        embeddings=embeddings,
        precision=precision,
        seed=seed,
    )
    hush_transformers()
    with progress() as step:
        healing = heal_model(
            model,
            output,
            read_pairs(texts, columns) if len(columns) == 2 else read_texts(texts, texts_column),
            teacher=teacher,
            ticket=load_ticket(ticket, skeleton(model)) if ticket is not None else None,
            settings=settings,
            progress=step,
        )
    fields = {"model": model, "teacher": teacher, "output": str(output), **healing.record()}
    if json is not None:
        results.append(json, [stamped("heal", fields)])
    typer.echo("\n".join([*healing_lines(fields), f"wrote {output}"]))
