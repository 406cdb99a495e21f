"""The command `sweep`."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sparsebert.atomic import write_text
from sparsebert.cli.console import print_tables
from sparsebert.cli.exit_codes import INCOMPLETE, CommandFailed
from sparsebert.cli.option_groups import flattened
from sparsebert.cli.path_checks import require_files, require_folders, require_records
from sparsebert.cli.resource_options import ResourceOptions
from sparsebert.cli.shared_options import DataFolder, JsonFile, require_applicable, require_numbers
from sparsebert_kernels.errors import unknown

if TYPE_CHECKING:
    from sparsebert.cli.train_runs import TrainRuns
    from sparsebert.experiments.grid import Cell, Grid

MARKDOWN = "experiment.md"
# Seconds of timed rounds per ticket.
_BUDGET = 5.0
# Options whose values are models.
_MODELS = {"model", "teacher"}
# The model that a package of the registry holds, for machines without a network.
PACKAGED_MODEL = "sentence-transformers/all-MiniLM-L6-v2"


@flattened
def sweep(
    file: Annotated[
        Path,
        typer.Argument(
            metavar="FILE",
            help="experiment, such as benchmarks/experiments/chen-table-2.yaml",
            show_default=False,
        ),
    ],
    resources: ResourceOptions,
    small: Annotated[
        bool, typer.Option("--small", help="run the small preset, which trains a small model in minutes")
    ] = False,
    out: Annotated[
        Path | None,
        typer.Option(
            help="folder of the runs; an interrupted sweep resumes there [default: runs/NAME or "
            "runs/NAME-small]"
        ),
    ] = None,
    data: DataFolder = None,
    only: Annotated[
        list[str] | None,
        typer.Option(
            metavar="<row/column>",
            help="run only these cells and those that they need; * matches all: imp/*; repeatable",
        ),
    ] = None,
    model_folder: Annotated[
        list[str] | None,
        typer.Option(
            metavar="<name=folder>", help="read the model of this name from a local folder; repeatable"
        ),
    ] = None,
    speed: Annotated[
        bool,
        typer.Option(
            "--speed",
            help="measure the speed of the first seed's tickets against dense baselines on this CPU",
        ),
    ] = False,
    budget: Annotated[
        float | None, typer.Option(help="with --speed: seconds of timed rounds per ticket [default: 5]")
    ] = None,
    rerun_changed: Annotated[
        bool,
        typer.Option("--rerun-changed", help="delete and run again the cells whose options have changed"),
    ] = False,
    keep_models: Annotated[
        bool, typer.Option("--keep-models", help="keep the trained model of each run, not only its ticket")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="print the command line of each run, and run nothing")
    ] = False,
    json: JsonFile = None,
) -> None:
    """Run an experiment: a table of training runs, beside the numbers of a paper.

    An interrupted sweep resumes when you start it again; finished runs are only read. The table gives the
    reasons of the runs that fail; the others go on, and the command ends with code 1.
    """
    require_files({"FILE": file})
    require_numbers({"--budget": budget}, least=0)
    if not speed:
        require_applicable({"--budget": budget}, "--speed")
    models = _model_folders(model_folder or [])
    from sparsebert.cli.train_options import TrainCommandOptions
    from sparsebert.experiments.read import read_experiment
    from sparsebert.workflows.sweep import selected_cells

    grid = read_experiment(file, TrainCommandOptions(), small=small)
    out = out or Path("runs") / (f"{grid.name}-small" if small else grid.name)
    require_folders({"--out": out, "--data": data})
    require_records("--json", json)
    _require_models(models, grid)
    lines = _Lines(out, data, models, resources.carbon_intensity)
    runs = {cell.name: _checked(cell, grid, lines) for cell in grid.cells}
    selected = selected_cells(grid, only or [])
    resources.account(gpu=any(runs[cell.name].training.on_gpu for cell in selected))
    if dry_run:
        for cell in selected:
            typer.echo(f"sparsebert train {shlex.join(lines.of(cell))}")
        return
    _require_one_process()
    seconds = (_BUDGET if budget is None else budget) if speed else None
    records = _run(grid, lines, selected, seconds, rerun_changed, keep_models)
    from sparsebert import results
    from sparsebert.report.experiment_tables import experiment_tables

    tables = experiment_tables(records)
    print_tables(tables)
    write_text(out / MARKDOWN, "\n\n".join(table.markdown() for table in tables) + "\n")
    if json is not None:
        results.append(json, records)
    typer.echo(f"runs, records and tables: {out}")
    _require_results(records, selected)


def _require_one_process() -> None:
    """Raise ValueError under ``torchrun``: all its processes would sweep the same folder."""
    from sparsebert.training.distributed import processes

    if processes() > 1:
        raise ValueError(
            f"a sweep is one process, got {processes()} of a launcher: start it without one; "
            "a single run may have several, by the command that --dry-run prints"
        )


class _Lines:
    """The command line of each cell."""

    def __init__(
        self, out: Path, data: Path | None, models: Mapping[str, str], carbon_intensity: float | None
    ) -> None:
        self.out = out
        self.carbon_intensity = carbon_intensity
        self._data = data
        self._models = models

    @property
    def local_paths(self) -> dict[str, str]:
        """Names, for records, of the paths in command lines."""
        names = {folder: name for name, folder in self._models.items()}
        names[self._model(PACKAGED_MODEL)] = PACKAGED_MODEL
        return names if self._data is None else {**names, str(self._data): "DATA"}

    def of(self, cell: Cell) -> list[str]:
        """Return the arguments of ``sparsebert train`` for a cell."""
        from sparsebert.cli.train_options import arguments
        from sparsebert.workflows.sweep import run_folder, with_sources

        values = with_sources(cell, self.out)
        for name in _MODELS & values.keys() - cell.sources.keys():
            values[name] = self._model(str(values[name]))
        if self._data is not None and not values.keys() & {"train-file", "validation-file"}:
            values["data"] = str(self._data)
        if self.carbon_intensity is not None:
            values["carbon-intensity"] = str(self.carbon_intensity)
        folder = run_folder(self.out, cell.place, cell.seed)
        return arguments({**values, "seed": str(cell.seed), "out": str(folder)})

    def runs(self, cell: Cell) -> TrainRuns:
        """Return the parsed command line of a cell. Raises ValueError as ``sparsebert train``."""
        from sparsebert.cli.train_options import requested_runs

        return requested_runs(self.of(cell))

    def _model(self, name: str) -> str:
        """Return the folder of a model if it is local, else its name."""
        if name in self._models or name != PACKAGED_MODEL:
            return self._models.get(name, name)
        from sparsebert.demo.real_model import weights_folder

        try:
            return weights_folder()
        except ValueError:  # The package is not installed: the hub has the model too.
            return name


def _model_folders(pairs: Sequence[str]) -> dict[str, str]:
    models: dict[str, str] = {}
    for pair in pairs:
        name, equals, folder = pair.partition("=")
        if not (name and equals and folder):
            raise ValueError(f"--model-folder must be NAME=FOLDER, got {pair!r}")
        if not Path(folder).is_dir():
            raise ValueError(f"--model-folder {pair}: {folder} is not a folder")
        models[name] = folder
    return models


def _require_models(folders: Mapping[str, str], grid: Grid) -> None:
    """Raise ValueError for a folder of a model that no cell has."""
    models = dict.fromkeys(
        str(each.options[name]) for each in grid.cells for name in sorted(_MODELS & each.options.keys())
    )
    for name in folders:
        if name not in models:
            raise unknown(f"model of {grid.name} in --model-folder", name, list(models))


def _checked(cell: Cell, grid: Grid, lines: _Lines) -> TrainRuns:
    """Return what a cell asks ``train`` for.

    Raises ValueError, with file and line, if ``train`` would refuse it whatever data there is.
    """
    from sparsebert.tasks import TASKS

    try:
        runs = lines.runs(cell)
        runs.check()
        metric = grid.metrics.get(cell.place.column)
        task = TASKS.get(runs.task_name)
        if metric is not None and task is not None and metric not in task.metric_names:
            raise unknown(f"metric of {task.name}", metric, task.metric_names)
    except ValueError as error:
        raise ValueError(f"{cell.where}: {error}") from None
    return runs


def _require_results(records: Sequence[Mapping[str, Any]], selected: Sequence[Cell]) -> None:
    """Raise CommandFailed if a selected run failed, or its measurement; others are of earlier sweeps."""
    from sparsebert.report.format import counted

    places = {(cell.place.row, cell.place.column, cell.seed) for cell in selected}
    rows = [row for row in records if (row["row"], row["column"], row["seed"]) in places]
    missing = sum(row["status"] != "done" for row in rows)
    failed = sum("failed" in row.get("speed", {}) for row in rows)
    if missing or failed:
        parts = [f"{counted(missing, 'run')} of {len(rows)} failed"] if missing else []
        parts += [f"{counted(failed, 'ticket')} without a speed"] if failed else []
        raise CommandFailed(f"{', '.join(parts)}; the last table says why", INCOMPLETE)


def _run(
    grid: Grid,
    lines: _Lines,
    selected: Sequence[Cell],
    budget: float | None,
    rerun_changed: bool,
    keep_models: bool,
) -> list[dict[str, Any]]:
    """Run the selected cells, and measure speeds for ``budget`` seconds each; None for no measurement."""
    from sparsebert.bench.environment import detect
    from sparsebert.bench.workload import hush_transformers
    from sparsebert.lottery.run_context import RunContext
    from sparsebert.workflows.example_cache import ExampleCache
    from sparsebert.workflows.sweep import Sweep
    from sparsebert.workflows.sweep_speed import SEQUENCES, measure, measured_before

    hush_transformers()
    examples = ExampleCache()
    first_seed = grid.cells[0].seed

    def say(line: str) -> None:
        typer.echo(line, err=True)

    def train(cell: Cell, folder: Path) -> None:
        context = RunContext(say, carbon_intensity=lines.carbon_intensity).of_run(cell.name)
        lines.runs(cell).carry_out({cell.seed: folder}, {}, context, examples)

    def measured(cell: Cell, folder: Path) -> dict[str, Any] | None:
        if budget is None:
            return measured_before(folder)
        if cell.seed != first_seed:
            return None
        runs = lines.runs(cell)
        return measure(folder, runs.model, lambda: runs.lengths(examples, SEQUENCES), budget, say)

    sweep = Sweep(
        grid,
        lines.out,
        selected,
        train,
        detect().record(),
        measured,
        rerun_changed,
        keep_models,
        lines.local_paths,
        say,
    )
    return sweep.run()
