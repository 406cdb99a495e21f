"""The command `convert`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sparsebert.cli.console import print_tables, print_ticket_file
from sparsebert.cli.option_groups import ExecutionOptions, flattened
from sparsebert.cli.path_checks import require_files, require_records, require_regular_file, require_writable
from sparsebert.cli.shared_options import (
    MAX_TOKENS,
    MEASURE_HELP,
    JsonFile,
    measure_option,
    require_applicable,
    require_numbers,
)
from sparsebert.cli.stamped import stamped
from sparsebert_kernels.dtype_names import long_name
from sparsebert_kernels.errors import unknown

if TYPE_CHECKING:
    from sparsebert.tickets.ticket import Ticket

TARGETS = ("sparsebert", "bert-tickets", "smp", "head-masks", "super-tickets", "model", "sparse")
_MODEL_FOLDERS = ("model", "sparse")
_NEED_MODEL = ("smp", "head-masks", "super-tickets", *_MODEL_FOLDERS)


@flattened
def convert(
    source: Annotated[
        Path,
        typer.Argument(
            help="ticket file; mask.pt of BERT-Tickets; .npy of SMP or bert-experiments; JSON of Super "
            "Tickets; folder of a run, of a model with zeros, or of a checkpoint of nn_pruning or movement "
            "pruning"
        ),
    ],
    output: Annotated[
        Path,
        typer.Argument(
            help="file to write; with --to head-masks or super-tickets, the file of the heads (the file of "
            "the MLPs is written beside it); with --to model or sparse, a new folder"
        ),
    ],
    execution: ExecutionOptions,
    to: Annotated[
        str,
        typer.Option(
            "--to",
            help="sparsebert (a ticket), bert-tickets (mask.pt), smp (.npy), head-masks (.npy of "
            "bert-experiments), super-tickets (JSON), model (dense, with zeros) or sparse (masks and "
            "kept weights)",
        ),
    ] = "sparsebert",
    model: Annotated[
        str | None,
        typer.Option(
            "--model", help="model that the ticket belongs to; required for files without names or shapes"
        ),
    ] = None,
    pruning_method: Annotated[
        str | None,
        typer.Option(
            help="for a movement pruning checkpoint: its method, topK, sigmoied_threshold, threshold, "
            "magnitude or l0; as in its config.json if omitted"
        ),
    ] = None,
    threshold: Annotated[
        float | None,
        typer.Option(
            help="for a movement pruning checkpoint: final_threshold of its run, which no file holds"
        ),
    ] = None,
    task: Annotated[
        str | None,
        typer.Option(help="for a JSON file of Super Tickets with several tasks: id of the task to convert"),
    ] = None,
    intersect: Annotated[
        list[Path] | None,
        typer.Option(
            "--intersect",
            metavar="<path>",
            help="keep only the weights that this other ticket also keeps (repeatable)",
        ),
    ] = None,
    batch: Annotated[
        int | None,
        typer.Option(
            help="with --to model or sparse: sequences per call, for the choice of formats and the reported "
            "activations [default: 1]"
        ),
    ] = None,
    seq: Annotated[
        int | None,
        typer.Option(
            help="with --to model or sparse: tokens per sequence; 128 or the model's maximum if omitted"
        ),
    ] = None,
    results_files: Annotated[
        list[Path] | None,
        typer.Option(
            "--results",
            metavar="<path>",
            help="with --to sparse: file of results for the model card, written by --json of train, eval or "
            "bench (repeatable)",
        ),
    ] = None,
    measure: Annotated[
        bool | None,
        typer.Option("--measure/--no-measure", help=f"with --to sparse: {MEASURE_HELP}"),
    ] = None,
    portable: Annotated[
        bool,
        typer.Option(
            "--portable",
            help="with --to sparse: write dense values, which load anywhere, instead of masks and kept "
            "weights",
        ),
    ] = False,
    embeddings: Annotated[
        str | None,
        typer.Option(
            help="with --to model or sparse: dtype to store the embeddings in, bf16 or fp16; their values "
            "are rounded, and the model loads in its own dtype"
        ),
    ] = None,
    json: JsonFile = None,
) -> None:
    """Convert a ticket to another format, or write the pruned model.

    A ticket becomes a file of this project, of BERT-Tickets, SMP, bert-experiments (head-masks) or Super
    Tickets. With --to model, the pruned model is written dense, with zeros in its weights. With --to sparse,
    masks and kept weights are written, which `from_pretrained` loads after `import sparsebert`, or with
    --portable dense values, which it loads anywhere.
    """
    if to not in TARGETS:
        raise unknown("format in --to", to, TARGETS)
    writes_model = to in _MODEL_FOLDERS
    home = _model_in(source) if model is None and writes_model else model
    if to in _NEED_MODEL and home is None:
        raise ValueError(f"--to {to} requires --model, the model that the ticket belongs to")
    if measure is not None and to != "sparse":
        raise ValueError(
            f"{measure_option(measure)} applies to --to sparse, which chooses formats; omit it with --to {to}"
        )
    if measure is not None and portable:
        raise ValueError(f"{measure_option(measure)} does not apply to --portable, which chooses no formats")
    if portable and to != "sparse":
        raise ValueError(f"--portable applies to --to sparse, not to --to {to}")
    if embeddings is not None:
        if not writes_model:
            raise ValueError(f"--embeddings applies to --to model or sparse, not to --to {to}")
        from sparsebert.workflows.export import EMBEDDING_DTYPES

        embeddings = long_name(embeddings, EMBEDDING_DTYPES, "dtype in --embeddings")
    if writes_model and output.exists():
        raise ValueError(f"output folder {output} already exists; choose another")
    if not source.exists():
        raise ValueError(f"source {source} does not exist")
    if not writes_model:
        require_applicable({"--batch": batch, "--seq": seq}, "--to model or sparse")
    if to != "sparse":
        require_applicable({"--results": results_files or None}, "--to sparse")
    if to != "sparse" or portable:
        require_applicable(execution.given, "--to sparse, without --portable")
    require_numbers({"--batch": batch, "--seq": seq}, most=MAX_TOKENS)
    _require_checkpoint([source, *(intersect or ())], pruning_method, threshold)
    for option, path in (("source", source), *(("--intersect", other) for other in intersect or ())):
        require_regular_file(option, path)
    require_files({"--results": results_files})
    require_writable({"output": output, "--json": json}, inputs=[source, *(intersect or ())])
    require_records("--json", json)
    from sparsebert import results
    from sparsebert.bench.runner import describe
    from sparsebert.bench.workload import hush_transformers
    from sparsebert.tasks.models import skeleton

    hush_transformers()
    records = [row for file in results_files or () for row in results.read(file)]
    shapes: Any = None if model is None else skeleton(model)
    ticket = _read(source, shapes, pruning_method, threshold, task)
    for other in intersect or ():
        ticket &= _read(other, shapes, pruning_method, threshold, task if other.suffix == ".json" else None)
    footprints: dict[str, Any] = {}
    if home is not None and writes_model:
        footprints = _write_model(
            home,
            output,
            ticket,
            sparse=to == "sparse",
            batch=batch or 1,
            length=seq,
            records=records,
            portable=portable,
            embeddings=embeddings,
            measure=measure is not False,
            **execution.arguments(),
        )
    else:
        _write_ticket(ticket, output, to, shapes)
    if json is not None:
        fields = {"source": str(source), "output": str(output), "to": to, "ticket": describe(ticket)}
        results.append(json, [stamped("convert", {**fields, **footprints})])
    print_ticket_file(output, ticket)


def _require_checkpoint(sources: Sequence[Path], pruning_method: str | None, threshold: float | None) -> None:
    """Raise ValueError for options of movement pruning's checkpoints if no source is one."""
    from sparsebert.interop import is_foreign_checkpoint
    from sparsebert.lottery.run_folder import RunFolder

    options = {"--pruning-method": pruning_method, "--threshold": threshold}
    folders = [each for each in sources if each.is_dir() and not RunFolder(each).run_json.exists()]
    if not any(pruning_method or is_foreign_checkpoint(folder) for folder in folders):
        require_applicable(options, "the folder of a movement pruning checkpoint")


def _model_in(source: Path) -> str | None:
    """Return the model in the folder of a run, or the folder of a model itself; None for a file."""
    from sparsebert.lottery.run_folder import RunFolder

    if not source.is_dir():
        return None
    folder = RunFolder(source)
    return str(folder.model if folder.run_json.exists() else source)


def _write_ticket(ticket: Ticket, output: Path, to: str, model: Any) -> None:
    """Write a ticket file in the format ``to``. Some formats take names and shapes from ``model``."""
    from sparsebert.interop import bert_experiments, bert_tickets, smp, super_tickets

    writers: dict[str, Callable[[], None]] = {
        "sparsebert": lambda: ticket.save(output),
        "bert-tickets": lambda: bert_tickets.to_bert_tickets(ticket, output),
        "smp": lambda: smp.to_smp(ticket, output, model),
        "head-masks": lambda: bert_experiments.to_head_mask(ticket, output, model),
        "super-tickets": lambda: super_tickets.to_super_tickets(ticket, output, model),
    }
    writers[to]()


def _write_model(model: str, output: Path, ticket: Ticket, **options: Any) -> dict[str, Any]:
    """Write the model, print its footprint before and after, and return both as fields of a record.

    Options are those of ``sparsebert.workflows.export.export_model``.
    """
    from sparsebert.report.ticket_tables import footprint_table
    from sparsebert.workflows.export import export_model

    before, after = export_model(model, output, ticket, **options)
    footprints = {"before": asdict(before), "after": asdict(after)}
    print_tables([footprint_table({"output": str(output), **footprints})])
    return footprints


def _read(
    source: Path, model: Any, pruning_method: str | None, threshold: float | None, task: str | None
) -> Ticket:
    """Read the ticket from a file, from a run, from a foreign checkpoint, or from the zeros of a model."""
    from sparsebert.compact import expand_
    from sparsebert.interop import is_foreign_checkpoint, read_checkpoint
    from sparsebert.lottery.find_runs import load_ticket
    from sparsebert.lottery.run_folder import RunFolder
    from sparsebert.sparsify import densify_
    from sparsebert.tasks.models import load_as_saved
    from sparsebert.tickets.ticket import Ticket

    if not source.is_dir() or RunFolder(source).run_json.exists():
        return load_ticket(source, model, task=task)
    if task is not None:
        raise ValueError(f"--task {task} does not apply to {source}: the folder of a model holds one ticket")
    if pruning_method or is_foreign_checkpoint(source):
        ticket = read_checkpoint(source, method=pruning_method, threshold=threshold)
    else:
        ticket = Ticket.from_model(expand_(densify_(load_as_saved(str(source)))))
    if model is not None:
        ticket.check(model)
    return ticket
