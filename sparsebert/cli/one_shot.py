"""The command `prune` for methods that are calibrated on texts and change the weights that stay."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from sparsebert.cli.console import print_tables, print_ticket_file, progress
from sparsebert.cli.one_shot_options import CalibrationOptions, SpeedOptions
from sparsebert.cli.option_groups import UnitOptions
from sparsebert.cli.path_checks import require_files, require_folders, require_records
from sparsebert.cli.shared_options import require_numbers
from sparsebert.cli.stamped import stamped

if TYPE_CHECKING:
    from sparsebert.one_shot.layerwise import Report

ONE_SHOT = ("wanda", "sparsegpt", "alps", "obs", "ziplm", "fisher-units")


def prune_to_folder(
    model: str,
    output: Path,
    method: str,
    sparsity: float | None,
    speed: SpeedOptions,
    units: UnitOptions,
    calibration: CalibrationOptions,
    filter: Callable[[str, Any], bool] | None,
    json: Path | None,
) -> None:
    """Prune a model on texts and write it with its ticket to a folder; print the error by kind of matrix.

    Raises:
        ValueError: For options that do not fit, and as :func:`sparsebert.prune_`.
    """
    if calibration.texts is None:
        raise ValueError(f"--texts is missing: method {method} is calibrated on texts")
    if output.suffix == ".safetensors":
        raise ValueError(f"--output must be a folder for method {method}, which writes a model, got {output}")
    require_files({"--texts": calibration.texts})
    require_numbers({"--count": calibration.count})
    require_numbers({"--damping": calibration.damping}, least=0)
    if output.exists():
        raise ValueError(f"output folder {output} already exists; choose another")
    require_folders({"--output": output.parent})
    require_records("--json", json)
    from sparsebert import results
    from sparsebert.bench.runner import describe
    from sparsebert.bench.workload import hush_transformers
    from sparsebert.one_shot.prune_in_place import find_one_shot
    from sparsebert.report.one_shot_tables import error_table
    from sparsebert.tasks.texts import read_texts
    from sparsebert.training.run_status import duration_text
    from sparsebert.workflows.one_shot import prune_folder

    hush_transformers()
    options = units.arguments()
    if options.pop("scope") != "global":
        raise ValueError(f"--scope does not apply to method {method}, which has its own: omit it")
    given = {} if calibration.damping is None else {"damping": calibration.damping}
    try:
        pruning_method = find_one_shot(method, **given)
    except TypeError:
        raise ValueError(f"--damping does not apply to method {method}: omit it") from None
    with progress() as step:

        def show(report: Report) -> None:
            left = duration_text(report.seconds_left)
            step(f"{report.key}: {report.error:.1%} of its outputs lost; {report.done:.0%} done, {left} left")

        step(f"loading {model}")
        ticket, reached = prune_folder(
            model,
            output,
            pruning_method,
            read_texts(calibration.texts, calibration.texts_column),
            count=calibration.count,
            progress=show,
            on_step=step,
            sparsity=sparsity,
            speed=speed.goal(),
            reproduce=calibration.reproduce or "dense",
            allocate=calibration.allocate,
            magnitude_where_singular=calibration.magnitude_where_singular,
            filter=filter,
            **options,
        )
    print_tables([error_table(ticket.metadata["errors"])])
    print_ticket_file(output, ticket)
    if reached is not None:
        typer.echo(f"asked for {speed.goal()}: {reached}")
    healing = ["heal", str(output), "--teacher", model, "--texts", str(calibration.texts)]
    healing += [] if calibration.texts_column is None else ["--texts-column", calibration.texts_column]
    typer.echo(f"measure its speed: {shlex.join(['sparsebert', 'bench', '--model', str(output)])}")
    typer.echo(f"train its weights: {shlex.join(['sparsebert', *healing, '--output', f'{output}-healed'])}")
    if json is not None:
        row = {"model": model, "method": method, "output": str(output), "ticket": describe(ticket)}
        row |= {"errors": ticket.metadata["errors"], "calibration": ticket.metadata["calibration"]}
        row |= {"speed": reached.record()} if reached is not None else {}
        results.append(json, [stamped("prune", {**row, "task": None, "seed": 0})])
