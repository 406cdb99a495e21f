"""The `sparsebert` command. Heavy modules are imported by the command that needs them, so `--help` is quick.

Every command takes `--json FILE` and appends its records there as JSON lines. Exit codes: 0 done, 1 a
benchmark's answers were wrong, 2 bad input (one line on stderr says what would be right).
"""

from __future__ import annotations

import sys
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sparsebert.cli import report, tickets, train, transfer
from sparsebert.cli.option_groups import GRANULARITY_HELP, JsonFile, TicketFile, print_tables, progress
from sparsebert.cli.path_checks import require_files, require_picture, require_records
from sparsebert.cli.tickets import AnyModel, sparsities
from sparsebert_kernels.errors import first_line, unknown

if TYPE_CHECKING:
    from sparsebert.bench.workload import Workload

app = typer.Typer(
    name="sparsebert",
    help="Find a lottery ticket in a BERT, and run it for real.",
    add_completion=False,
    pretty_exceptions_enable=False,
)

# Some versions of typer depend on click, some carry their own copy: this is the base class of either.
UsageError: type[Exception] = typer.BadParameter.__bases__[0]

DEFAULT_RIVALS = "onednn,eager"


@app.command()
def bench(
    model: AnyModel = "bert-base",
    ticket: TicketFile = None,
    sparsity: Annotated[
        str | None,
        typer.Option(
            help="without --ticket: share of zeros to prune by magnitude, 0 to 1; several: 0.5,0.7,0.9",
            show_default="0.9",
        ),
    ] = None,
    granularity: Annotated[
        str | None,
        typer.Option(help=f"without --ticket: {GRANULARITY_HELP}", show_default="element"),
    ] = None,
    format: Annotated[
        str,
        typer.Option(
            help="packed format of every layer: auto (the plan chooses); element, vector, compact, dense, "
            "csr; for GPUs panel, bitmap, column_panel, 2:4"
        ),
    ] = "auto",
    batch: Annotated[int, typer.Option(help="sequences that go together")] = 1,
    seq: Annotated[int, typer.Option(help="tokens of each sequence")] = 128,
    lengths_from: Annotated[
        Path | None, typer.Option(help="real lengths instead of --seq: one sentence or one integer a line")
    ] = None,
    dtype: Annotated[str, typer.Option(help="float32, bfloat16, float16, float64")] = "float32",
    threads: Annotated[int, typer.Option(help="CPU threads of every side")] = 1,
    device: Annotated[str, typer.Option(help="cpu or cuda")] = "cpu",
    vs: Annotated[
        str, typer.Option(help="dense rivals, the main one first; --vs help lists them")
    ] = DEFAULT_RIVALS,
    budget: Annotated[float, typer.Option(help="seconds of timed rounds for each sparsity")] = 10.0,
    memory: Annotated[
        bool, typer.Option(help="measure resident memory, each side in its own process")
    ] = True,
    seed: Annotated[int, typer.Option(help="of random weights and of token ids")] = 0,
    json: JsonFile = None,
    plot: Annotated[
        Path | None, typer.Option(help="draw speed-up against sparsity (.png, .svg or .pdf)")
    ] = None,
) -> None:
    """Time the sparse model against dense rivals: the same answers first, then paired rounds."""
    if ticket and sparsity:
        raise ValueError(f"--sparsity {sparsity}: the ticket has one of its own; leave one of them out")
    if ticket and granularity:
        raise ValueError(f"--granularity {granularity}: the ticket has one of its own; leave one of them out")
    shares = [None] if ticket else sparsities(sparsity or "0.9")
    require_records("--json", json)
    require_picture("--plot", plot)
    require_files({"--lengths-from": lengths_from})
    from sparsebert import results
    from sparsebert.bench import environment, output_check, runner
    from sparsebert.bench.pruned_model import prepare
    from sparsebert.bench.workload import Workload, read_lengths
    from sparsebert.lottery.find_runs import load_ticket
    from sparsebert.pruning import prune as magnitude_pruned
    from sparsebert.report.model_tables import bench_tables

    if vs == "help":
        return _list_rivals()
    rivals = _rivals(vs, chosen=vs != DEFAULT_RIVALS)
    lengths = (seq,) * batch
    if lengths_from is not None:
        lengths = read_lengths(lengths_from, model, batch, limit=512, seed=seed)
    workload = Workload(model, batch, lengths, dtype, threads, device, seed)
    settings = runner.Settings(budget=budget, memory=memory)
    records: list[dict[str, Any]] = []
    with progress() as step:
        step("looking around")
        import torch

        torch.set_num_threads(threads)
        machine = environment.detect()
        for share in shares:
            step(f"loading {model}")
            dense = _load(workload)
            if ticket is not None:
                drawn = load_ticket(ticket, dense)
            else:
                drawn = magnitude_pruned(dense, sparsity=share, granularity=granularity or "element")
            subject = prepare(workload, drawn, format=format, model=dense)
            try:
                rows = runner.run(subject, rivals, machine, settings, step)
            except output_check.GateError as error:
                raise _Refused(str(error), code=1) from None
            if json is not None:
                results.append(json, rows)
            records += rows
            step("")
            print_tables(bench_tables(rows))
    if plot is not None:
        from sparsebert.report.plots import speedup_plot

        speedup_plot(records, plot)
        typer.echo(f"wrote {plot}")


@app.command()
def env(json: JsonFile = None) -> None:
    """What was found on this machine, and what each lack costs."""
    require_records("--json", json)
    from sparsebert import results
    from sparsebert.bench import environment
    from sparsebert.report.environment import environment_tables

    found = environment.detect()
    lacking = environment.lacks(found)
    row = results.stamp(
        "environment", {"environment": found.record(), "lacks": [vars(lack) for lack in lacking]}
    )
    if json is not None:
        results.append(json, [row])
    print_tables(environment_tables([row]))


app.command("prune")(tickets.prune)
app.command("train")(train.train)
app.command("eval")(train.evaluate)
app.command("transfer")(transfer.transfer)
app.command("convert")(tickets.convert)
app.command("report")(report.report)


def main(arguments: list[str] | None = None) -> int:
    """Run the command line and return its exit code; bad input is one line on stderr, never a traceback."""
    arguments = sys.argv[1:] if arguments is None else arguments
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _warn
            code = app(arguments or ["--help"], prog_name="sparsebert", standalone_mode=False)
    except _Refused as refused:
        return _complain(str(refused), refused.code)
    except UsageError as error:
        return _complain(" ".join(error.format_message().split()), 2)  # type: ignore[attr-defined]
    except (typer.Abort, KeyboardInterrupt):
        return _complain("stopped", 130)
    except (ValueError, OSError) as error:
        known = isinstance(error, OSError) and error.filename is not None and error.strerror
        text = f"{error.filename}: {error.strerror}" if known else error  # type: ignore[union-attr]
        return _complain(first_line(text), 2)
    return code if isinstance(code, int) else 0


class _Refused(Exception):
    """Ends the command with this exit code."""

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        self.code = code


def _warn(message: Warning | str, *where: Any, **details: Any) -> None:
    """In place of Python's own way, which quotes a line of code."""
    print(f"sparsebert: warning: {str(message).strip()}", file=sys.stderr)


def _complain(message: str, code: int) -> int:
    print(f"sparsebert: {message}", file=sys.stderr)
    return code


def _list_rivals() -> None:
    from sparsebert.bench.providers import BACKENDS, BASELINES

    for name in BASELINES:
        provider = BACKENDS[name]()
        lack = provider.available()
        typer.echo(f"{name:18} {provider.summary}" + (f" (not here: {lack})" if lack else ""))


def _rivals(names: str, chosen: bool) -> list[str]:
    """The rivals to run. A default one that cannot run is left out, one the user chose is refused."""
    from sparsebert.bench.providers import BACKENDS, BASELINES

    wanted = [name.strip() for name in names.split(",") if name.strip()]
    if not wanted:
        raise ValueError(f"--vs names no rival; known: {', '.join(BASELINES)}")
    kept = []
    for name in dict.fromkeys(wanted):
        if name not in BASELINES:
            raise unknown("rival in --vs", name, BASELINES)
        lack = BACKENDS[name]().available()
        if lack is None:
            kept.append(name)
        elif chosen:
            raise ValueError(f"{name} cannot run here: {lack}")
        else:
            typer.echo(f"without {name}: {lack}", err=True)
    return kept


def _load(workload: Workload) -> Any:
    from sparsebert.bench.workload import hush_transformers

    hush_transformers()
    return workload.load_model()


if __name__ == "__main__":
    sys.exit(main())
