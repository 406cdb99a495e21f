"""The commands `prune` and `convert`: tickets without training. Heavy modules are imported when they run."""

from __future__ import annotations

from collections.abc import Callable
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sparsebert.cli.option_groups import (
    DataOptions,
    JsonFile,
    Seeds,
    TaskName,
    TicketFile,
    UnitOptions,
    flattened,
    print_tables,
    progress,
    seed_list,
)
from sparsebert.cli.path_checks import require_files, require_records, require_writable
from sparsebert_kernels.errors import unknown

if TYPE_CHECKING:
    from sparsebert.tickets.ticket import Ticket

MODEL_HELP = "hub id, local folder, or a shape with random weights: bert-tiny, minilm, bert-base, bert-large"
KINDS = ("sparsebert", "bert-tickets", "smp", "head-masks", "super-tickets", "model", "sparse")
_FOLDERS = ("model", "sparse")
_NEED_MODEL = ("smp", "head-masks", "super-tickets", *_FOLDERS)

AnyModel = Annotated[str, typer.Option("--model", help=MODEL_HELP)]


@flattened
def prune(
    model: AnyModel,
    output: Annotated[
        Path,
        typer.Option(help="ticket file to write; of several seeds x-seed-1.safetensors, ..."),
    ],
    units: UnitOptions,
    data: DataOptions,
    sparsity: Annotated[str, typer.Option(help="share of zeros, below 1")] = "0.9",
    method: Annotated[str, typer.Option(help="magnitude, random, snip or head-importance")] = "magnitude",
    ticket: TicketFile = None,
    task: TaskName = None,
    batches: Annotated[int, typer.Option(help="batches of the task's training data to look at")] = 8,
    batch_size: Annotated[int, typer.Option(help="examples of such a batch")] = 32,
    biases: Annotated[
        bool, typer.Option("--biases", help="magnitude, random: single biases too, as Prasanna et al. do")
    ] = False,
    keep_smallest: Annotated[
        bool, typer.Option("--keep-smallest", help="magnitude: the bad tickets of Prasanna et al.")
    ] = False,
    accumulate: Annotated[
        bool, typer.Option("--accumulate", help="head-importance: gradients never cleared, as published")
    ] = False,
    per_example: Annotated[
        bool, typer.Option("--per-example", help="head-importance: abs of each example's gradient")
    ] = False,
    per_token: Annotated[
        bool, typer.Option("--per-token", help="head-importance: abs of each token's part of the gradient")
    ] = False,
    keep_a_head: Annotated[
        bool, typer.Option("--keep-a-head", help="head-importance: the best head of each layer goes last")
    ] = False,
    seeds: Seeds = "0",
    json: JsonFile = None,
) -> None:
    """Prune once, without training, and write the ticket; with --ticket, prune further what that one keeps.

    snip and head-importance look at examples: they take a --task, as `train` does; head-importance a model
    that is trained on it (the folder model/ of a run) and a --granularity of head, neuron or mlp.
    """
    shares = sparsities(sparsity)
    if len(shares) != 1:
        raise ValueError(f"--sparsity {sparsity}: a ticket has one sparsity")
    if min(batches, batch_size) < 1:
        raise ValueError(f"--batches {batches} and --batch-size {batch_size} must be at least 1")
    chosen = seed_list(seeds)
    files = {seed: _with_seed(output, seed) if len(chosen) > 1 else output for seed in chosen}
    for file in files.values():
        require_writable({"--output": file})
    require_records("--json", json)
    from sparsebert import results
    from sparsebert.bench.runner import describe
    from sparsebert.bench.workload import Workload, hush_transformers
    from sparsebert.lottery.experiment import PruningUnits
    from sparsebert.lottery.find_runs import load_ticket
    from sparsebert.pruning import prune as prune_model
    from sparsebert.pruning.registry import find_method
    from sparsebert.report.ticket_tables import overlap_text
    from sparsebert.tasks.metrics import summary
    from sparsebert.workflows.train import assemble, examples_of, require_whole_blocks, task_of

    hush_transformers()
    flags = {
        "keep_smallest": keep_smallest,
        "accumulate": accumulate,
        "per_example": per_example,
        "per_token": per_token,
        "keep_a_head": keep_a_head,
    }
    chosen_method = find_method(method, **{flag: True for flag, given in flags.items() if given})
    name = data.task_name(task) if task is not None or data.own else None
    source = data.source(name) if name is not None else None
    tickets: dict[int, Ticket] = {}
    with progress() as step:
        for seed in chosen:
            step(f"loading {model}")
            examples = None
            if name is None:
                dense: Any = Workload(model, lengths=(1,), seed=seed).load_model()
            else:
                known = task_of(name, source)
                experiment = assemble(known, model, examples_of(known, source), seed, data.max_length)
                dense, examples = experiment.model, experiment.first_batches(batches, batch_size, seed)
            require_whole_blocks(dense, PruningUnits(**units.arguments()))
            step("pruning")
            tickets[seed] = prune_model(
                dense,
                chosen_method,
                sparsity=shares[0],
                seed=seed,
                ticket=load_ticket(ticket, dense) if ticket else None,
                data=examples,
                include_biases=biases,
                **units.arguments(),
            )
    rows = []
    for seed, drawn in tickets.items():
        drawn.save(files[seed])
        size = files[seed].stat().st_size
        what = {"output": str(files[seed]), "ticket": describe(drawn), "bytes": size, "seed": seed}
        rows.append(results.stamp("prune", {"model": model, "method": method, "task": name, **what}))
        typer.echo(_described(files[seed], drawn))
    if len(tickets) > 1:
        pairs = [one.overlap(other) for one, other in combinations(tickets.values(), 2)]
        found = summary(pairs)
        overlap = {"overlaps": pairs, "mean": found.mean, "std": found.std}
        fields = {"model": model, "method": method, "task": name, "seeds": chosen, **overlap}
        rows.append(results.stamp("prune_seeds", fields))
        typer.echo(overlap_text(rows[-1]))
    if json is not None:
        results.append(json, rows)


def convert(
    source: Annotated[
        Path,
        typer.Argument(
            help="ticket file, mask.pt of BERT-Tickets, .npy of SMP or bert-experiments, JSON of Super "
            "Tickets, a run's folder, or a model's: with zeros, of nn_pruning, or of movement pruning"
        ),
    ],
    output: Annotated[
        Path,
        typer.Argument(
            help="file to write; with --to head-masks or super-tickets that of the heads, and the other one "
            "goes beside it; with --to model or sparse a new folder"
        ),
    ],
    to: Annotated[
        str,
        typer.Option(
            "--to",
            help="sparsebert (a ticket), bert-tickets (mask.pt), smp (.npy), head-masks (.npy of "
            "bert-experiments), super-tickets (JSON), model (dense, with zeros), sparse (masks and "
            "kept weights)",
        ),
    ] = "sparsebert",
    model: Annotated[
        str | None,
        typer.Option("--model", help="the model the ticket is for; files without names or shapes need it"),
    ] = None,
    pruning_method: Annotated[
        str | None,
        typer.Option(
            help="of a movement pruning checkpoint: topK, sigmoied_threshold, magnitude or l0; else as in "
            "its config.json"
        ),
    ] = None,
    threshold: Annotated[
        float | None,
        typer.Option(
            help="of a movement pruning checkpoint: the final_threshold of the run, which no file holds"
        ),
    ] = None,
    task: Annotated[
        str | None,
        typer.Option(help="JSON of Super Tickets that lists several tasks: the id of the one that is meant"),
    ] = None,
    intersect: Annotated[
        list[Path] | None,
        typer.Option(
            "--intersect", help="keep only what this ticket keeps too, such as that of another seed"
        ),
    ] = None,
    batch: Annotated[
        int,
        typer.Option(
            help="--to model, sparse: sequences of a call, to choose formats and count activations for"
        ),
    ] = 1,
    seq: Annotated[
        int | None,
        typer.Option(help="--to model, sparse: tokens of each; 128 without it, or what the model takes"),
    ] = None,
    results_files: Annotated[
        list[Path] | None,
        typer.Option(
            "--results", help="--to sparse: what --json of train, eval or bench wrote, for the model card"
        ),
    ] = None,
    json: JsonFile = None,
) -> None:
    """Write a ticket in another format: ours, BERT-Tickets' mask.pt, SMP's .npy, the files of heads and MLPs
    of bert-experiments (head-masks) or Super Tickets; or a model with its zeros in the weights (model), or as
    masks and kept weights, which `from_pretrained` loads too (sparse)."""
    if to not in KINDS:
        raise unknown("format in --to", to, KINDS)
    home = model or (_own_model(source) if to in _FOLDERS else None)
    if to in _NEED_MODEL and home is None:
        raise ValueError(f"--to {to} needs the model that the ticket is for: --model")
    if to in _FOLDERS and output.exists():
        raise ValueError(f"{output} is there already: a pruned model wants a new folder")
    if not source.exists():
        raise ValueError(f"there is no file or folder {source} to convert")
    require_files({"--results": results_files})
    require_writable({"output": output})
    require_records("--json", json)
    from sparsebert import results
    from sparsebert.bench.runner import describe
    from sparsebert.bench.workload import hush_transformers
    from sparsebert.interop import bert_experiments, bert_tickets
    from sparsebert.tasks.models import skeleton

    hush_transformers()
    records = [row for file in results_files or () for row in results.read(file)]
    whole: Any = skeleton(model) if model else None
    ticket = _read(source, whole, pruning_method, threshold, task)
    for other in intersect or ():
        of_task = task if other.suffix == ".json" else None
        ticket &= _read(other, whole, pruning_method, threshold, of_task)
    took: dict[str, Any] = {}
    if home is not None and to in _FOLDERS:
        took = _rewrite(home, output, ticket, to == "sparse", batch, seq, records)
    else:
        writers: dict[str, Callable[[], None]] = {
            "sparsebert": lambda: ticket.save(output),
            "bert-tickets": lambda: bert_tickets.to_bert_tickets(ticket, output),
            "smp": lambda: bert_tickets.to_smp(ticket, output, whole),
            "head-masks": lambda: bert_experiments.to_head_mask(ticket, output, whole),
            "super-tickets": lambda: bert_experiments.to_super_tickets(ticket, output, whole),
        }
        writers[to]()
    if json is not None:
        fields = {"source": str(source), "output": str(output), "to": to, "ticket": describe(ticket), **took}
        results.append(json, [results.stamp("convert", fields)])
    typer.echo(_described(output, ticket))


def _own_model(source: Path) -> str | None:
    """The model that a run's folder holds, or a folder is; None for a file."""
    from sparsebert.lottery.run_folder import RunFolder

    if not source.is_dir():
        return None
    folder = RunFolder(source)
    return str(folder.model if folder.run_json.exists() else source)


def _rewrite(
    model: str,
    output: Path,
    ticket: Ticket,
    sparse: bool,
    batch: int,
    seq: int | None,
    records: list[Any],
) -> dict[str, Any]:
    """Write the model, say what it took and takes; the same as fields of a record."""
    from dataclasses import asdict

    from sparsebert.report.ticket_tables import footprint_table
    from sparsebert.workflows.export import export_model

    before, after = export_model(
        model, output, ticket, sparse=sparse, batch=batch, length=seq, records=records
    )
    took = {"before": asdict(before), "after": asdict(after)}
    print_tables([footprint_table({"output": str(output), **took})])
    return took


def sparsities(text: str) -> list[float]:
    """The shares of "0.5,0.9". Raises ValueError for what is none, with a hint at percentages."""
    try:
        shares = [float(part) for part in text.split(",")]
    except ValueError:
        raise ValueError(
            f"--sparsity {text!r} is no number between 0 and 1, such as 0.9 or 0.5,0.7,0.9"
        ) from None
    for share in shares:
        if not 0 <= share <= 1:
            hint = f"; did you mean {share / 100:g}?" if 1 < share <= 100 else ""
            raise ValueError(f"--sparsity {share:g} is outside 0 to 1{hint}")
    return shares


def _read(
    source: Path, model: Any, pruning_method: str | None, threshold: float | None, task: str | None
) -> Ticket:
    from sparsebert.compact import expand_
    from sparsebert.interop.movement_pruning import from_checkpoint, is_foreign_checkpoint
    from sparsebert.lottery.find_runs import load_ticket
    from sparsebert.lottery.run_folder import RunFolder
    from sparsebert.sparsify import densify_
    from sparsebert.tasks.models import load_as_saved
    from sparsebert.tickets.ticket import Ticket

    if not source.is_dir() or RunFolder(source).run_json.exists():
        return load_ticket(source, model, task=task)
    if task is not None:
        raise ValueError(f"--task {task}: {source} is a model, which holds one ticket")
    if pruning_method or is_foreign_checkpoint(source):
        ticket = from_checkpoint(source, method=pruning_method, threshold=threshold)
    else:
        ticket = Ticket.from_model(expand_(densify_(load_as_saved(str(source)))))
    if model is not None:
        ticket.check(model)
    return ticket


def _with_seed(path: Path, seed: int) -> Path:
    return path.with_name(f"{path.stem}-seed-{seed}{path.suffix}")


def _described(path: Path, ticket: Ticket) -> str:
    files = [path] if path.is_file() else [each for each in path.rglob("*") if each.is_file()]
    size = sum(each.stat().st_size for each in files)
    whole = ticket.metadata.get("encoder_sparsity")
    of_all = "" if whole is None else f", {whole:.2%} of all encoder matrices"
    return (
        f"wrote {path}: {len(ticket.masks)} matrices, {ticket.sparsity:.2%} sparse "
        f"(density {ticket.density:.2%}){of_all}, {size / 1e6:.1f} MB"
    )
