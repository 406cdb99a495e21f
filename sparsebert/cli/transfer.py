"""The command `transfer`."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from sparsebert.cli.console import print_tables, say
from sparsebert.cli.data_options import DataOptions
from sparsebert.cli.option_groups import flattened
from sparsebert.cli.path_checks import require_folders, require_records
from sparsebert.cli.resource_options import ResourceOptions
from sparsebert.cli.shared_options import (
    TASK_NAMES,
    JsonFile,
    PretrainedModel,
    Seeds,
    require_share,
    seed_list,
)
from sparsebert.cli.stamped import stamped
from sparsebert.training.settings import TrainingSettings


@flattened
def transfer(
    ticket: Annotated[
        list[str],
        typer.Option(
            "--ticket",
            metavar="<name=path>",
            help="ticket to train, as NAME=PATH (repeatable): ticket file in any supported format, folder of "
            "a run, or folder of runs by seed (each seed then trains the ticket of its run)",
        ),
    ],
    tasks: Annotated[
        str,
        typer.Option(help=f"tasks to train on, optionally with steps (sst2,cola=500): {TASK_NAMES}"),
    ],
    model: PretrainedModel,
    data: DataOptions,
    training: TrainingSettings,
    resources: ResourceOptions,
    sparsity: Annotated[
        float | None, typer.Option(help="for runs with several rounds: sparsity of the round to use")
    ] = None,
    random: Annotated[
        bool, typer.Option("--random", help="also train random masks of the same sparsity")
    ] = False,
    out: Annotated[
        Path | None, typer.Option(help="folder of the runs; finished runs are not repeated")
    ] = None,
    dense: Annotated[
        Path | None,
        typer.Option(help="folder of dense runs (TASK/seed-N); missing ones are trained there"),
    ] = None,
    seeds: Seeds = "0",
    json: JsonFile = None,
) -> None:
    """Train tickets from some tasks on other tasks, and compare them with the dense model."""
    numbers = seed_list(seeds)
    require_share("--sparsity", sparsity)
    paths = _paths_by_name(ticket)
    require_records("--json", json)
    require_folders({"--out": out, "--dense": dense})
    carbon_intensity = resources.account(gpu=training.on_gpu).carbon_intensity
    import sparsebert.workflows.transfer as workflow
    from sparsebert import results
    from sparsebert.bench.workload import hush_transformers
    from sparsebert.lottery.find_runs import load_tickets
    from sparsebert.report.resource_tables import resource_tables
    from sparsebert.report.run_tables import matrix_tables
    from sparsebert.tasks.models import short_name, skeleton
    from sparsebert.training import distributed

    hush_transformers()
    if data.label_map is not None and not data.user_files:
        raise ValueError("--label-map applies to your own files here: omit it, or use train for each task")
    steps_by_task = _steps_by_task(tasks)
    data.require_applicable_folder(steps_by_task)
    targets = [
        workflow.Target(
            name, data.source(name), replace(training, steps=training.steps if steps is None else steps)
        )
        for name, steps in steps_by_task.items()
    ]
    shapes = skeleton(model)
    tickets = {name: load_tickets(path, shapes, numbers, sparsity) for name, path in paths.items()}
    if differences := workflow.sparsity_differences(tickets):
        shares = ", ".join(f"{name} {share:.2%}" for name, share in differences.items())
        typer.echo(f"the tickets differ in sparsity, so do not compare their rows: {shares}")
    reporter = _Reporter(carbon_intensity)
    folder = out or Path("runs") / f"transfer-{short_name(model).replace('/', '-')}"
    cells = workflow.transfer(
        model,
        tickets,
        targets,
        folder,
        seeds=numbers,
        dense_folder=dense,
        random=random,
        text_format=data.text_format,
        context=reporter.context(),
    )
    if not distributed.is_main():
        return
    rows = [stamped("transfer", cell) for cell in cells]
    if json is not None:
        results.append(json, rows)
    if reporter.finished:
        typer.echo(f"{reporter.finished} of {len(cells) * len(numbers)} runs were already finished")
    print_tables([*matrix_tables(rows), *resource_tables(rows)])
    typer.echo(f"tickets, run logs and trained models: {folder}")


class _Reporter:
    """Progress of many runs: counts the finished runs, and prints each speed estimate once."""

    def __init__(self, carbon_intensity: float | None) -> None:
        self.finished = 0
        self._carbon_intensity = carbon_intensity
        self._printed: set[str] = set()

    def context(self) -> Any:
        from sparsebert.lottery.run_context import RunContext

        return RunContext(self._say, self._print_speed_estimate, carbon_intensity=self._carbon_intensity)

    def _say(self, text: str) -> None:
        # One line for each finished run would hide the matrix.
        if text.endswith("nothing to do"):
            self.finished += 1
        else:
            say(text)

    def _print_speed_estimate(self, model: Any, config: Any) -> None:
        from sparsebert.lottery.speed_estimate import estimate_speedup

        # Tickets of one sparsity and granularity have the same estimate.
        text = "\n".join(estimate_speedup(model, config)) if config.ticket is not None else ""
        if text and text not in self._printed:
            self._printed.add(text)
            typer.echo(text)


def _paths_by_name(tickets: Sequence[str]) -> dict[str, Path]:
    """Return the paths in "sst2=runs/sst2" by name; by default the name of the file or folder."""
    paths: dict[str, Path] = {}
    for text in tickets:
        match = re.fullmatch(r"(\w[\w.+-]*)=(.+)", text)
        path = Path(match[2] if match else text)
        name = match[1] if match else path.resolve().stem
        if name in paths:
            raise ValueError(f"--ticket: two tickets have the name {name}; name them, as in sst2={path}")
        paths[name] = path
    return paths


def _steps_by_task(tasks: str) -> dict[str, int | None]:
    """Return the steps in "sst2,cola=500" by task; None for a task without steps."""
    steps_by_task: dict[str, int | None] = {}
    for text in tasks.split(","):
        name, _, steps = text.strip().partition("=")
        if not name or (steps and not steps.isdecimal()):
            raise ValueError(
                f"--tasks must be tasks with optional steps, such as sst2,cola=500, got {tasks!r}"
            )
        steps_by_task[name] = int(steps) if steps else None
    return steps_by_task
