"""The command `prune` for methods that are calibrated and change the weights that stay."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from sparsebert.atomic import size_on_disk
from sparsebert.cli.console import print_tables, print_ticket_file, progress
from sparsebert.cli.data_options import DataOptions
from sparsebert.cli.one_shot_options import CalibrationOptions, SpeedOptions
from sparsebert.cli.option_groups import UnitOptions
from sparsebert.cli.path_checks import require_files, require_folders, require_records
from sparsebert.cli.resource_options import ResourceOptions
from sparsebert.cli.shared_options import require_applicable, require_numbers
from sparsebert.cli.stamped import stamped

if TYPE_CHECKING:
    from sparsebert.bench.judged_texts import LabelledRows
    from sparsebert.one_shot.progress import Report

ONE_SHOT = ("wanda", "sparsegpt", "alps", "obs", "ziplm", "fisher-units", "obert")


def prune_to_folder(
    model: str,
    output: Path,
    method: str,
    sparsity: float | None,
    speed: SpeedOptions,
    units: UnitOptions,
    calibration: CalibrationOptions,
    task: str | None,
    data: DataOptions,
    batch_size: int | None,
    filter: Callable[[str, Any], bool] | None,
    json: Path | None,
    resources: ResourceOptions,
) -> None:
    """Prune a model on texts or a task, and write it with its ticket to a folder; print the errors.

    Raises:
        ValueError: For options that do not fit, and as :func:`sparsebert.prune_`.
    """
    with_task = task is not None or data.user_files
    if calibration.texts is None and not with_task:
        raise ValueError(f"--texts is missing: method {method} is calibrated on texts, or on a --task")
    if with_task:
        texts = {"--texts": calibration.texts, "--texts-column": calibration.texts_column}
        require_applicable(texts, "unlabelled texts, without --task and --train-file")
    if output.suffix == ".safetensors":
        raise ValueError(f"--output must be a folder for method {method}, which writes a model, got {output}")
    require_files({"--texts": calibration.texts})
    require_numbers({"--count": calibration.count, "--recomputations": calibration.recomputations})
    require_numbers({"--damping": calibration.damping}, least=0)
    if output.exists():
        raise ValueError(f"output folder {output} already exists; choose another")
    require_folders({"--output": output.parent})
    require_records("--json", json)
    account = resources.account()
    from sparsebert import results
    from sparsebert.bench.runner import describe
    from sparsebert.bench.workload import hush_transformers
    from sparsebert.bert import is_bert_like
    from sparsebert.report.one_shot_tables import error_table
    from sparsebert.report.resource_tables import resource_line
    from sparsebert.tasks.models import skeleton
    from sparsebert.tasks.texts import read_texts
    from sparsebert.training.run_status import duration_text
    from sparsebert.workflows.one_shot import prune_folder, unfinished_files

    hush_transformers()
    options = units.arguments()
    pruning_method = _method(method, options.pop("scope"), calibration)
    if with_task:
        rows: Any = _examples(model, pruning_method, task, data)
    else:
        rows = read_texts(Path(str(calibration.texts)), calibration.texts_column)
    with progress() as step, account.metered(output, unfinished=unfinished_files(output)):

        def show(report: Report) -> None:
            left = duration_text(report.seconds_left)
            step(f"{report}, {left} left")

        step(f"loading {model}")
        ticket, reached = prune_folder(
            model,
            output,
            pruning_method,
            rows,
            count=calibration.count,
            batch_size=batch_size,
            max_length=None if with_task else data.max_length,
            progress=show,
            on_step=step,
            sparsity=sparsity,
            speed=speed.goal(),
            reproduce=calibration.reproduce or "dense",
            allocate=calibration.allocate,
            magnitude_where_singular=calibration.magnitude_where_singular,
            filter=filter,
            account=account,
            **options,
        )
    if errors := ticket.metadata.get("errors"):
        print_tables([error_table(errors)])
    print_ticket_file(output, ticket)
    if reached is not None:
        typer.echo(f"asked for {speed.goal()}: {reached}")
    accounted = account.record()
    typer.echo(resource_line(accounted))
    bench = ["sparsebert", "bench", "--model", str(output)]
    typer.echo(f"measure its speed: {shlex.join(bench)}")
    # Healing reads the hidden states of BERT-like encoders.
    training = _training(model, output, calibration, task, data)
    if training and (training[0] != "heal" or is_bert_like(skeleton(model))):
        typer.echo(f"train its weights: {shlex.join(['sparsebert', *training])}")
    if json is not None:
        row: dict[str, Any] = {
            "model": model,
            "method": method,
            "output": str(output),
            "ticket": describe(ticket),
            "bytes": size_on_disk(output),
            "errors": errors or {},
            "calibration": ticket.metadata["calibration"],
        }
        row |= {"speed": reached.record()} if reached is not None else {}
        name = data.task_name(task) if with_task else None
        results.append(json, [stamped("prune", {**row, "task": name, "seed": 0, **accounted})])


def _method(name: str, scope: str, calibration: CalibrationOptions) -> Any:
    """Return the method with the options that it has; raise ValueError for one that it does not have."""
    from sparsebert.one_shot.prune_in_place import find_one_shot

    given = {
        "scope": None if scope == "global" else scope,
        "damping": calibration.damping,
        "recomputations": calibration.recomputations,
    }
    options = {option: value for option, value in given.items() if value is not None}
    try:
        return find_one_shot(name, **options)
    except TypeError as error:
        option = next(option for option in options if f"'{option}'" in str(error))
        raise ValueError(f"--{option} does not apply to method {name}: omit it") from None


def _examples(model: str, method: Any, task: str | None, data: DataOptions) -> LabelledRows:
    """Return the training examples of a task; classes of the user's tables are those of a trained model."""
    from sparsebert.bench.judged_texts import LabelledRows
    from sparsebert.tasks.load_checked import load_config
    from sparsebert.tasks.models import has_head, head_labels
    from sparsebert.workflows.assemble import examples_of, task_of

    name = data.task_name(task)
    data.require_applicable_folder([name])
    outputs = None
    if data.has_labels and not hasattr(method, "prune_layer"):
        trained = has_head(load_config(model), data.kind) and not data.regression
        outputs = head_labels(model, data.kind) if trained else None
    source = data.source(name, outputs, validates=False)
    examples = examples_of(data.mapped(task_of(name, source)), source)
    return LabelledRows(examples.task, examples.train, data.text_format)


def _training(
    model: str, output: Path, calibration: CalibrationOptions, task: str | None, data: DataOptions
) -> list[str]:
    """Return the command that trains the weights that stay, on the texts or on a built-in task."""
    if calibration.texts is not None:
        command = ["heal", str(output), "--teacher", model, "--texts", str(calibration.texts)]
        command += [] if calibration.texts_column is None else ["--texts-column", calibration.texts_column]
        return [*command, "--output", f"{output}-healed"]
    if data.user_files or task is None:
        return []
    command = ["train", "--task", task, "--model", str(output), "--method", "ticket", "--ticket", str(output)]
    return command if data.data is None else [*command, "--data", str(data.data)]
