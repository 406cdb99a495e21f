"""The command `prune`."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sparsebert.cli.console import print_ticket_file, progress
from sparsebert.cli.data_options import DataOptions
from sparsebert.cli.one_shot import ONE_SHOT, prune_to_folder
from sparsebert.cli.one_shot_options import CalibrationOptions, SpeedOptions
from sparsebert.cli.option_groups import UnitOptions, flattened
from sparsebert.cli.path_checks import require_records, require_writable
from sparsebert.cli.resource_options import ResourceOptions
from sparsebert.cli.shared_options import (
    AnyModel,
    JsonFile,
    Seeds,
    TaskName,
    TicketFile,
    require_applicable,
    require_numbers,
    seed_list,
    sparsity_list,
)
from sparsebert.cli.stamped import stamped

if TYPE_CHECKING:
    from sparsebert.tasks import Task, TextFormat
    from sparsebert.tickets.ticket import Ticket

# More batches, or examples in a batch, than any data set has.
_MAX_COUNT = 10**9


@flattened
def prune(
    model: AnyModel,
    output: Annotated[
        Path,
        typer.Option(
            help="ticket file to write; several seeds add their number: NAME-seed-1.safetensors. Methods "
            "that change weights write a new folder with model and ticket"
        ),
    ],
    units: UnitOptions,
    calibration: CalibrationOptions,
    data: DataOptions,
    speed: SpeedOptions,
    resources: ResourceOptions,
    sparsity: Annotated[
        str | None, typer.Option(help="share of zeros, below 1 [default: 0.9, or that of N:M]")
    ] = None,
    method: Annotated[
        str,
        typer.Option(
            help="magnitude, random, snip or head-importance; or, calibrated on --texts or a --task: wanda, "
            "sparsegpt, alps, obs; for heads and neurons ziplm, fisher-units; by the loss on a --task obert"
        ),
    ] = "magnitude",
    filter: Annotated[
        str | None,
        typer.Option(
            "--filter",
            help="regular expression: prune the linear layers whose names contain a match, such as 'mlp|fc'",
        ),
    ] = None,
    ticket: TicketFile = None,
    task: TaskName = None,
    batches: Annotated[
        int | None,
        typer.Option(
            help="snip, head-importance: number of training batches to compute scores on [default: 8]"
        ),
    ] = None,
    batch_size: Annotated[
        int | None,
        typer.Option(
            help="with --task: examples per batch [default: 32; obert, with a gradient for each batch: 1]"
        ),
    ] = None,
    biases: Annotated[
        bool, typer.Option("--biases", help="magnitude, random: also prune single biases (Prasanna et al.)")
    ] = False,
    keep_smallest: Annotated[
        bool,
        typer.Option(
            "--keep-smallest", help="magnitude: keep the smallest weights (bad tickets of Prasanna et al.)"
        ),
    ] = False,
    accumulate: Annotated[
        bool,
        typer.Option("--accumulate", help="head-importance: never clear the gradients, as published"),
    ] = False,
    per_example: Annotated[
        bool,
        typer.Option("--per-example", help="head-importance: sum absolute gradients over examples"),
    ] = False,
    per_token: Annotated[
        bool, typer.Option("--per-token", help="head-importance: sum absolute gradients over tokens")
    ] = False,
    keep_a_head: Annotated[
        bool, typer.Option("--keep-a-head", help="head-importance: prune the best head of each layer last")
    ] = False,
    seeds: Seeds = "0",
    json: JsonFile = None,
) -> None:
    """Prune a model once, without training, and write the ticket.

    Methods that are calibrated need no labels, only --texts, or the training texts of a --task. wanda chooses
    weights; sparsegpt, alps and obs also change those that stay, layer by layer; ziplm and fisher-units do so
    for heads and neurons, named by --granularity. obert ranks all weights by the loss of a model trained on
    the --task, and fisher-units takes its gradients from it. --output is then a folder with the new weights.
    With --speedup or --milliseconds, wanda, sparsegpt, alps and obs take several granularities too, such as
    element,4x1: each matrix chooses.

    With --ticket, only weights that this ticket keeps are pruned further. Any model made of linear layers can
    be pruned: without --filter the encoder of a BERT-like model, and in another model the layers in its
    stacks. snip and head-importance compute scores on examples and need --task. head-importance also needs a
    model trained on the task (the folder model/ of a run) and a --granularity of heads, neurons or MLPs.
    """
    if sparsity is not None and speed.given is not None:
        raise ValueError(f"--sparsity conflicts with {speed.given}, from which it follows: omit one")
    share = _sparsity(sparsity, units)
    require_numbers({"--batches": batches, "--batch-size": batch_size}, most=_MAX_COUNT)
    if task is None and not data.user_files:
        data.require_no_task(texts=method in ONE_SHOT)
        require_applicable({"--batches": batches, "--batch-size": batch_size}, "--task")
    selects = None if filter is None else _filter_of(filter)
    if method in ONE_SHOT:
        inapplicable = {
            "--batches": batches,
            "--ticket": ticket,
            "--biases": biases,
            "--keep-smallest": keep_smallest,
            "--accumulate": accumulate,
            "--per-example": per_example,
            "--per-token": per_token,
            "--keep-a-head": keep_a_head,
            "--seeds": None if seeds == "0" else seeds,
        }
        require_applicable(inapplicable, "a method that scores weights, such as magnitude")
        prune_to_folder(
            model,
            output,
            method,
            share if speed.given is None else None,
            speed,
            units,
            calibration,
            task,
            data,
            batch_size,
            selects,
            json,
            resources,
        )
        return
    require_applicable({speed.given or "": speed.given}, f"a one-shot method ({', '.join(ONE_SHOT)})")
    require_applicable(resources.given(), f"a one-shot method ({', '.join(ONE_SHOT)})")
    require_applicable(calibration.given(), f"a one-shot method ({', '.join(ONE_SHOT)})")
    numbers = seed_list(seeds)
    files = {seed: _with_seed(output, seed) if len(numbers) > 1 else output for seed in numbers}
    for file in files.values():
        require_writable({"--output": file, "--json": json})
    require_records("--json", json)
    from sparsebert import results
    from sparsebert.bench.runner import describe
    from sparsebert.bench.workload import hush_transformers
    from sparsebert.lottery.find_runs import load_ticket
    from sparsebert.pruning import prune as prune_model
    from sparsebert.pruning.pruning_units import PruningUnits
    from sparsebert.pruning.registry import find_method
    from sparsebert.workflows.assemble import require_whole_blocks, task_of

    hush_transformers()
    flags = {
        "keep_smallest": keep_smallest,
        "accumulate": accumulate,
        "per_example": per_example,
        "per_token": per_token,
        "keep_a_head": keep_a_head,
    }
    pruning_method = find_method(method, **{flag: True for flag, is_set in flags.items() if is_set})
    source = definition = None
    if task is not None or data.user_files:
        task = data.task_name(task)
        data.require_applicable_folder([task])
        source = data.source(task, validates=False)
        definition = data.mapped(task_of(task, source))
    tickets: dict[int, Ticket] = {}
    fingerprints: dict[int, Mapping[str, str]] = {}
    with progress() as step:
        for seed in numbers:
            step(f"loading {model}")
            dense, examples, fingerprints[seed] = _model_and_examples(
                model, definition, source, seed, data.text_format, batches or 8, batch_size or 32
            )
            require_whole_blocks(dense, PruningUnits(**units.arguments()), selects)
            step("pruning")
            tickets[seed] = prune_model(
                dense,
                pruning_method,
                sparsity=share,
                seed=seed,
                ticket=load_ticket(ticket, dense) if ticket else None,
                data=examples,
                include_biases=biases,
                filter=selects,
                **units.arguments(),
            )
    fields = {"model": model, "method": method, "task": task}
    rows = []
    for seed, pruned in tickets.items():
        pruned.metadata |= {} if task is None else {"task": task}
        pruned.save(files[seed])
        size = files[seed].stat().st_size
        written = {"output": str(files[seed]), "ticket": describe(pruned), "bytes": size, "seed": seed}
        rows.append(stamped("prune", {**fields, **written, "fingerprints": dict(fingerprints[seed])}))
        print_ticket_file(files[seed], pruned)
    if len(tickets) > 1:
        rows.append(_overlap_row(tickets, fields))
    if json is not None:
        results.append(json, rows)


def _sparsity(sparsity: str | None, units: UnitOptions) -> float | None:
    """Return the sparsity, by default 0.9, or None for a pattern such as 2:4, which has its own."""
    if sparsity is None:
        from sparsebert.pruning.granularity import listed, parse_granularity, spelled_out

        names = map(spelled_out, listed(units.granularity or "element"))
        return None if any(parse_granularity(*name).pattern for name in names) else 0.9
    sparsities = sparsity_list(sparsity)
    if len(sparsities) != 1:
        raise ValueError(f"--sparsity must be one number, got {sparsity}: a ticket has one sparsity")
    return sparsities[0]


def _filter_of(pattern: str) -> Callable[[str, Any], bool]:
    """Return the filter that selects the layers whose names contain a match of a regular expression."""
    try:
        expression = re.compile(pattern)
    except re.error as error:
        raise ValueError(f"--filter must be a regular expression, got {pattern!r}: {error}") from None
    return lambda name, linear: expression.search(name) is not None


def _model_and_examples(
    model: str,
    task: Task | None,
    source: Any,
    seed: int,
    text_format: TextFormat,
    batches: int,
    batch_size: int,
) -> tuple[Any, list[dict[str, Any]] | None, Mapping[str, str]]:
    """Return the model to prune, the first batches of the task's training data, and fingerprints.

    Without a task there are no batches.
    """
    if task is None:
        from sparsebert.accounting.fingerprints import digest_of_model
        from sparsebert.bench.workload import Workload
        from sparsebert.tasks.load_checked import fresh_tensors

        loaded = Workload(model, lengths=(1,), seed=seed).load_model()
        return loaded, None, {"model": digest_of_model(loaded, without=fresh_tensors(loaded))}
    from sparsebert.workflows.assemble import assemble, examples_of

    experiment = assemble(task, model, examples_of(task, source), seed, text_format)
    return experiment.model, experiment.first_batches(batches, batch_size, seed), experiment.fingerprints


def _overlap_row(tickets: Mapping[int, Ticket], fields: Mapping[str, Any]) -> dict[str, Any]:
    """Print the overlap between the tickets of several seeds, and return the record."""
    from sparsebert.report.ticket_tables import overlap_text
    from sparsebert.tasks.verdict import summary

    pairs = [one.overlap(other) for one, other in combinations(tickets.values(), 2)]
    mean = summary(pairs)
    overlap = {"overlaps": pairs, "mean": mean.mean, "std": mean.std}
    row = stamped("prune_seeds", {**fields, "seeds": list(tickets), **overlap})
    typer.echo(overlap_text(row))
    return row


def _with_seed(path: Path, seed: int) -> Path:
    return path.with_name(f"{path.stem}-seed-{seed}{path.suffix}")
