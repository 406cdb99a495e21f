"""The command `transfer`: Chen's matrix. Heavy modules are imported when it runs."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from sparsebert.cli.option_groups import (
    TASK_NAMES,
    DataOptions,
    JsonFile,
    PretrainedModel,
    Seeds,
    flattened,
    print_tables,
    say,
    seed_list,
)
from sparsebert.cli.path_checks import require_folders, require_records
from sparsebert.training.settings import TrainingSettings


@flattened
def transfer(
    ticket: Annotated[
        list[str],
        typer.Option(
            "--ticket",
            help="once for each ticket: NAME=PATH of a ticket file of any kind, of the folder of a run that "
            "found it, or of a folder of runs by seed (each seed then trains its own)",
        ),
    ],
    tasks: Annotated[
        str,
        typer.Option(
            help=f"tasks to train on, some with steps of their own: sst2,cola=500; known: {TASK_NAMES}"
        ),
    ],
    model: PretrainedModel,
    data: DataOptions,
    training: TrainingSettings,
    sparsity: Annotated[
        float | None, typer.Option(help="of runs with several rounds, the round of this sparsity")
    ] = None,
    random: Annotated[bool, typer.Option("--random", help="also random masks of the same sparsity")] = False,
    out: Annotated[
        Path | None, typer.Option(help="folder of the runs; what is finished there is not done again")
    ] = None,
    dense: Annotated[
        Path | None,
        typer.Option(help="folder of dense runs, TASK/seed-N below it; those it lacks are made there"),
    ] = None,
    seeds: Seeds = "0",
    json: JsonFile = None,
) -> None:
    """Train tickets found on some tasks on others, and judge them by the dense model, as Chen et al. do."""
    chosen = seed_list(seeds)
    named = _named(ticket)
    require_records("--json", json)
    require_folders({"--out": out, "--dense": dense})
    import sparsebert.workflows.transfer as library
    from sparsebert import results
    from sparsebert.bench.workload import hush_transformers
    from sparsebert.lottery.find_runs import load_tickets
    from sparsebert.lottery.speed_estimate import estimate_speedup
    from sparsebert.report.run_tables import matrix_tables
    from sparsebert.tasks.models import short_name, skeleton
    from sparsebert.training import distributed

    hush_transformers()
    targets = [
        library.Target(name, data.source(name), replace(training, steps=steps or training.steps))
        for name, steps in _with_steps(tasks).items()
    ]
    whole = skeleton(model)
    tickets = {name: load_tickets(path, whole, chosen, sparsity) for name, path in named.items()}
    if differences := library.sparsity_differences(tickets):
        shares = ", ".join(f"{name} {share:.2%}" for name, share in differences.items())
        typer.echo(f"the tickets differ in sparsity, so their rows are no fair comparison: {shares}")
    told: set[str] = set()
    finished: list[str] = []

    def say_but_count(text: str) -> None:
        """A line for each of many runs that are finished would hide the matrix."""
        (finished.append if text.endswith("nothing to do") else say)(text)

    def say_gain_once(loaded: Any, request: Any) -> None:
        """Tickets of one sparsity and granularity gain the same."""
        gain = "\n".join(estimate_speedup(loaded, request)) if request.ticket is not None else ""
        if gain and gain not in told:
            told.add(gain)
            typer.echo(gain)

    folder = out or Path("runs") / f"transfer-{short_name(model).replace('/', '-')}"
    found = library.transfer(
        model,
        tickets,
        targets,
        folder,
        seeds=chosen,
        dense_folder=dense,
        random=random,
        max_length=data.max_length,
        say=say_but_count,
        before=say_gain_once,
    )
    if not distributed.is_main():
        return
    rows = [results.stamp("transfer", cell) for cell in found]
    if json is not None:
        results.append(json, rows)
    if finished:
        typer.echo(f"{len(finished)} of {len(found) * len(chosen)} runs were finished: nothing to do there")
    print_tables(matrix_tables(rows))
    typer.echo(f"tickets, run logs and trained models: {folder}")


def _named(tickets: Sequence[str]) -> dict[str, Path]:
    """Name -> path of "sst2=runs/sst2"; without a name, that of the file or folder."""
    found: dict[str, Path] = {}
    for text in tickets:
        given = re.fullmatch(r"([\w.+-]+)=(.+)", text)
        path = Path(given[2] if given else text)
        name = given[1] if given else path.resolve().stem
        if name in found:
            raise ValueError(f"two tickets are called {name}: name them, as in sst2={path}")
        found[name] = path
    return found


def _with_steps(tasks: str) -> dict[str, int | None]:
    """Task -> steps of "sst2,cola=500"."""
    found: dict[str, int | None] = {}
    for text in tasks.split(","):
        name, _, steps = text.strip().partition("=")
        if not name or (steps and not steps.isdecimal()):
            raise ValueError(f"--tasks {tasks!r}: tasks are expected, with steps or without: sst2,cola=500")
        found[name] = int(steps) if steps else None
    return found
