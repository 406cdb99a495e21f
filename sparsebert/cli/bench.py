"""The command `bench`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sparsebert.cli.baselines import ALL, list_baselines, usable_baselines
from sparsebert.cli.console import print_tables, progress
from sparsebert.cli.exit_codes import WRONG_OUTPUT, CommandFailed
from sparsebert.cli.option_groups import ExecutionOptions, flattened
from sparsebert.cli.path_checks import require_files, require_picture, require_records, require_writable
from sparsebert.cli.resource_options import ResourceOptions
from sparsebert.cli.shared_options import (
    GRANULARITY_HELP,
    MAX_TOKENS,
    MEASURE_HELP,
    AnyModel,
    JsonFile,
    TicketFile,
    measure_option,
    require_numbers,
    sparsity_list,
)

if TYPE_CHECKING:
    from sparsebert.bench.environment import Environment
    from sparsebert.bench.pruned_model import PrunedModel
    from sparsebert.bench.runner import Settings
    from sparsebert.bench.workload import Workload

DEFAULT_BASELINES = {"cpu": "onednn,eager", "cuda": "compile,eager"}
_MAX_BUDGET = 86_400  # a day


@flattened
def bench(
    execution: ExecutionOptions,
    resources: ResourceOptions,
    model: AnyModel = "bert-base",
    ticket: TicketFile = None,
    sparsity: Annotated[
        str | None,
        typer.Option(
            help="without --ticket: sparsity of magnitude pruning, from 0 to 1, or several: 0.5,0.7 "
            "[default: 0.9]"
        ),
    ] = None,
    granularity: Annotated[
        str | None,
        typer.Option(help=f"without --ticket: {GRANULARITY_HELP} [default: element]"),
    ] = None,
    format: Annotated[
        str,
        typer.Option(
            help="packed format of every layer: auto (the plan chooses); element, vector, compact, dense, "
            "csr, row_panel (with --tolerance bf16); on GPUs panel, bitmap, column_panel, 2:4"
        ),
    ] = "auto",
    measure: Annotated[
        bool | None, typer.Option("--measure/--no-measure", help=f"with --format auto: {MEASURE_HELP}")
    ] = None,
    batch: Annotated[int, typer.Option(help="sequences per batch")] = 1,
    seq: Annotated[int | None, typer.Option(help="tokens per sequence [default: 128]")] = None,
    lengths_from: Annotated[
        Path | None,
        typer.Option(help="file of real lengths, instead of --seq: one sentence or one integer per line"),
    ] = None,
    dtype: Annotated[str, typer.Option(help="fp32, bf16, fp16 or fp64")] = "fp32",
    threads: Annotated[int, typer.Option(help="CPU threads of every contestant")] = 1,
    device: Annotated[str, typer.Option(help="cpu or cuda")] = "cpu",
    graphs: Annotated[
        bool, typer.Option("--graphs", help="run every contestant in CUDA graphs; needs --device cuda")
    ] = False,
    vs: Annotated[
        str | None,
        typer.Option(
            help="dense baselines, the main one first; all: every one that works here, the others named with "
            f"their reasons; --vs help lists them [default: {DEFAULT_BASELINES['cpu']}; with --device cuda: "
            f"{DEFAULT_BASELINES['cuda']}]"
        ),
    ] = None,
    calibrate_with: Annotated[
        Path | None,
        typer.Option(
            help="file of sentences, one per line, by which int8 baselines choose their scales "
            "[default: random tokens, like the inputs]"
        ),
    ] = None,
    budget: Annotated[float, typer.Option(help="seconds of timed rounds for each sparsity")] = 10.0,
    memory: Annotated[
        bool, typer.Option(help="measure resident memory, each contestant in its own process")
    ] = True,
    seed: Annotated[int, typer.Option(help="seed of random weights and token ids")] = 0,
    profile: Annotated[
        bool,
        typer.Option(
            "--profile",
            help="instead of the comparison: where a batch's time goes on a CPU, dense and sparse, plain and "
            "fused; --plot draws it as stacked bars",
        ),
    ] = False,
    json: JsonFile = None,
    plot: Annotated[
        Path | None, typer.Option(help="draw speed-up against sparsity (.png, .svg or .pdf)")
    ] = None,
) -> None:
    """Time a sparse model against dense baselines, after checking that their outputs agree.

    A folder that holds a ticket, as `prune --texts` and `heal` write it, is pruned by that ticket unless
    --ticket, --sparsity or --granularity is given.
    """
    if ticket is None and sparsity is None and granularity is None:
        ticket = _ticket_beside(Path(model))
    for option, value in (("--sparsity", sparsity), ("--granularity", granularity)):
        if ticket is not None and value is not None:
            raise ValueError(f"{option} {value} conflicts with --ticket, which decides it; omit one of them")
    if measure is not None and format != "auto":
        raise ValueError(
            f"{measure_option(measure)} applies to --format auto, which chooses formats; omit it with "
            f"--format {format}"
        )
    require_numbers({"--budget": budget}, least=0, most=_MAX_BUDGET)
    require_numbers({"--batch": batch, "--seq": seq}, most=MAX_TOKENS)
    # A ticket and a pattern such as 2:4 have a sparsity of their own.
    decided = ticket is not None or (sparsity is None and granularity is not None and ":" in granularity)
    sparsities: Sequence[float | None] = (
        [None] if decided else sparsity_list("0.9" if sparsity is None else sparsity)
    )
    require_writable({"--json": json, "--plot": plot})
    require_records("--json", json)
    require_picture("--plot", plot)
    if profile and plot is not None and len(sparsities) > 1:
        raise ValueError(
            f"--profile --plot draws one sparsity, got {len(sparsities)}; omit --plot or name one"
        )
    require_files({"--lengths-from": lengths_from, "--calibrate-with": calibrate_with})
    if vs == "help":
        return list_baselines()
    resources.account(gpu=device != "cpu")  # refuses a carbon intensity where no energy is measured
    if profile and vs is not None:
        raise ValueError(f"--vs {vs} conflicts with --profile, which has no baselines; omit one of them")
    if profile and execution.fuse is not None:
        option = "--fuse" if execution.fuse else "--no-fuse"
        raise ValueError(f"{option} conflicts with --profile, which shows both; omit one of them")
    named = DEFAULT_BASELINES["cpu" if device == "cpu" else "cuda"] if vs is None else vs
    baselines, missing = ([], {}) if profile else usable_baselines(named, required=vs not in (None, ALL))
    from sparsebert import results
    from sparsebert.bench import cpu_ceilings, runner
    from sparsebert.bench import profile as profiler
    from sparsebert.bench.workload import Workload, read_lengths, read_texts
    from sparsebert.report.cpu_roofline import cpu_roofline_tables
    from sparsebert.report.model_tables import bench_tables
    from sparsebert.report.profile_tables import profile_figure, profile_tables
    from sparsebert.report.resource_tables import resource_line
    from sparsebert_kernels.formats.dense import DEFAULT_TOKENS

    lengths = (DEFAULT_TOKENS if seq is None else seq,) * batch
    if lengths_from is not None:
        lengths = read_lengths(lengths_from, model, batch, limit=512, seed=seed)
    if batch * max(lengths) > MAX_TOKENS:
        raise ValueError(f"--batch {batch} times {max(lengths)} tokens must be at most {MAX_TOKENS} tokens")
    workload = Workload(model, batch, lengths, dtype, threads, device, seed, graphs)
    texts = () if calibrate_with is None else read_texts(calibrate_with)
    settings = runner.Settings(budget=budget, memory=memory, leave_out=vs == ALL)
    records: list[dict[str, Any]] = []
    with progress() as step:
        step("detecting the machine")
        machine = _detect(threads)
        ceilings = None
        if profile and device == "cpu":
            step("measuring the ceilings of this CPU")
            ceilings = cpu_ceilings.measure_ceilings(threads, min(profiler.CEILINGS_SECONDS, budget))
        for pruned, fingerprints in _pruned_models(
            workload,
            ticket,
            sparsities,
            "element" if granularity is None else granularity,
            format,
            measure is not False,
            execution.arguments(),
            texts,
            step,
        ):
            account = resources.account(gpu=device != "cpu")
            with account.metered():
                if profile:
                    rows = profiler.run(pruned, machine, settings, step, ceilings)
                    tables = [*profile_tables(rows), *cpu_roofline_tables(rows)]
                else:
                    rows = _compared(pruned, baselines, machine, settings, step, missing)
                    tables = bench_tables(rows)
                used = account.resources()
            # The sides share one comparison, whose resources stand in the record of the first.
            rows = [row | {"resources": None, "fingerprints": fingerprints} for row in rows]
            rows[0]["resources"] = used
            if json is not None:
                results.append(json, rows)
            records += rows
            step("")
            print_tables(tables)
            typer.echo(resource_line(rows[0]))
    if plot is not None:
        from sparsebert.report.plots import save_figure
        from sparsebert.report.speedup_plots import speedup_plot

        if profile:
            save_figure(profile_figure(records), plot)
        else:
            speedup_plot(records, plot)
        typer.echo(f"wrote {plot}")


def _compared(
    pruned: PrunedModel,
    baselines: Sequence[str],
    machine: Environment,
    settings: Settings,
    step: Callable[[str], None],
    missing: dict[str, str],
) -> list[dict[str, Any]]:
    """Return the records of a comparison; wrong outputs end the command."""
    from sparsebert.bench import output_check, runner

    try:
        return runner.run(pruned, baselines, machine, settings, step, missing)
    except output_check.OutputMismatchError as error:
        raise CommandFailed(str(error), WRONG_OUTPUT) from None


def _pruned_models(
    workload: Workload,
    ticket: Path | None,
    sparsities: Sequence[float | None],
    granularity: str,
    format: str,
    measure: bool,
    execution: dict[str, Any],
    texts: Sequence[str],
    step: Callable[[str], None],
) -> Iterator[tuple[PrunedModel, dict[str, str]]]:
    """Yield the workload's model with its ticket, and their fingerprints, for each sparsity."""
    from sparsebert.accounting.fingerprints import digest_of_model
    from sparsebert.bench.pruned_model import prepare_pruned_model
    from sparsebert.bench.workload import hush_transformers
    from sparsebert.lottery.find_runs import load_ticket
    from sparsebert.pruning import prune

    hush_transformers()
    for sparsity in sparsities:
        step(f"loading {workload.model}")
        dense = workload.load_model()
        if ticket is not None:
            model_ticket = load_ticket(ticket, dense)
        else:
            model_ticket = prune(dense, sparsity=sparsity, granularity=granularity)
        fingerprints = {"model": digest_of_model(dense), "masks": model_ticket.digest}
        pruned = prepare_pruned_model(
            workload,
            model_ticket,
            format=format,
            measure=measure,
            model=dense,
            calibration_texts=texts,
            **execution,
        )
        yield pruned, fingerprints


def _ticket_beside(model: Path) -> Path | None:
    """Return the ticket beside the weights of a model folder, or None."""
    from sparsebert.tickets import TICKET_FILE

    files = (model / name for name in ("config.json", TICKET_FILE))
    return model / TICKET_FILE if all(map(Path.is_file, files)) else None


def _detect(threads: int) -> Environment:
    """Limit torch to ``threads`` threads, and return a description of the machine."""
    import torch

    from sparsebert.bench import environment

    torch.set_num_threads(threads)
    return environment.detect()
