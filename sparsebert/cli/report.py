"""The command `report`."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from json import dumps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sparsebert import results
from sparsebert.atomic import write_text
from sparsebert.cli.console import print_tables
from sparsebert.cli.path_checks import require_folders, require_records, require_writable
from sparsebert.cli.shared_options import JsonFile
from sparsebert.lottery.run_folder import RunFolder

if TYPE_CHECKING:
    from sparsebert.report.ticket_labels import TicketLabel
    from sparsebert.tickets.ticket import Ticket


def report(
    sources: Annotated[
        list[Path],
        typer.Argument(
            metavar="FILE_OR_FOLDER",
            help="files written by --json of a command or --out of a benchmark, folders of runs or of "
            "sweeps, or folders that contain runs at any depth",
            show_default=False,
        ),
    ],
    html: Annotated[Path | None, typer.Option(help="write one self-contained page with plots")] = None,
    markdown: Annotated[Path | None, typer.Option(help="write the tables as Markdown")] = None,
    figures: Annotated[
        Path | None, typer.Option(help="folder for the plots as SVG and PNG; the page links to them")
    ] = None,
    csv: Annotated[
        Path | None,
        typer.Option(
            help="folder for the tables and the numbers behind the plots as CSV; the page links to them"
        ),
    ] = None,
    json: JsonFile = None,
) -> None:
    """Show results as tables: runs, tickets, and benchmarks with their machines.

    All files and folders are combined, and duplicate records count once. Runs with several seeds are
    summarised and, if there are dense runs, compared with them. A page also shows where the weights of the
    runs' tickets stay.
    """
    files = dict.fromkeys(file for source in sources for file in _files(source))
    targets = {"--html": html, "--markdown": markdown, "--json": json}
    require_writable(targets, files)
    require_records("--json", json)
    require_folders({"--figures": figures, "--csv": csv})
    from sparsebert.report.format import counted, listed
    from sparsebert.report.page import Report, require_renderer, save_pictures, save_tables
    from sparsebert.report.plots import require_matplotlib
    from sparsebert.report.sections import sections

    if html is not None:
        require_renderer()
    if figures is not None:
        require_matplotlib()
    records = _read(files)
    elsewhere = [target for target in (html, markdown, figures, csv) if target is not None]
    if elsewhere:
        records += _of_tickets(sources)
    names = [str(source) if source.is_dir() else source.name for source in sources]
    page = Report(f"Results: {listed(names)}", records, sections(records), names)
    if not page.tables:
        raise ValueError(f"{', '.join(names)} holds no records that a table can show: {_kinds(records)}")
    if not elsewhere:
        print_tables(page.tables)
    written: dict[int, list[Path]] = {}
    for folder, saved in (
        (figures, lambda folder: save_pictures(page.pictures, folder)),
        (csv, lambda folder: save_tables(page.tables, page.pictures, folder)),
    ):
        if folder is not None:
            added = saved(folder)
            typer.echo(f"wrote {counted(sum(map(len, added.values())), 'file')} to {folder}")
            written = {key: written.get(key, []) + added.get(key, []) for key in written | added}
    for file, render in ((html, lambda: page.html(html, written)), (markdown, page.markdown)):
        if file is not None:
            write_text(file, render())
            typer.echo(f"wrote {file}: {page.size}")
    if json is not None:
        results.append(json, [results.stamp("report", table.record()) for table in page.tables])


def _of_tickets(sources: Iterable[Path]) -> list[results.Record]:
    """Return the records of the tickets that finished runs found; name each run without one on stderr.

    The ticket of a dense run prunes nothing and is left out.
    """
    from sparsebert.bench.environment import detect
    from sparsebert.report.format import listed
    from sparsebert.report.inspection import inspect_labelled
    from sparsebert.workflows.sweep_records import RECORDS
    from sparsebert.workflows.ticket_sources import labelled_tickets, runs_in

    folders = [source for source in sources if source.is_dir()]
    # Tables of a sweep name its cells without its folder.
    below = len(folders) == 1 and (folders[0] / RECORDS).exists()
    named = {
        str(run.relative_to(folder) if below else run): run
        for folder in folders
        for run in runs_in(folder) or [folder]
    }
    dense = []

    def pruning() -> Iterator[tuple[TicketLabel, Ticket]]:
        for label, ticket in labelled_tickets(
            named, skip=lambda line: typer.echo(f"without the ticket of {line}", err=True)
        ):
            if ticket.prunes:
                yield label, ticket
            else:
                dense.append(label.name)

    environment = detect().record()
    inspected = inspect_labelled(pruning(), one_model=False).records
    if dense and not inspected:
        typer.echo(f"without densities: the ticket of {listed(dense)} prunes nothing", err=True)
    return [{**row, "environment": environment} for row in inspected]


def _files(source: Path) -> Iterator[Path]:
    """Yield the file itself, or the records of sweeps and the logs of runs, with seed-2 before seed-10."""
    if not source.exists():
        raise ValueError(f"{source} does not exist; name a file of results or a folder of runs")
    if not source.is_dir():
        yield source
        return
    from sparsebert.workflows.sweep_records import RECORDS
    from sparsebert.workflows.ticket_sources import natural_order

    name = RunFolder(source).log.name
    files = sorted((*source.rglob(RECORDS), *source.rglob(name)), key=lambda file: natural_order(str(file)))
    # The rounds of a sweep's many runs are shown for the folders of the runs.
    sweeps = {file.parent for file in files if file.name == RECORDS}
    logs = [file for file in files if file.name == RECORDS or sweeps.isdisjoint(file.parents)]
    if not logs and RunFolder(source).run_json.exists():
        raise ValueError(f"{source} holds a run without a finished round; report it after its first round")
    if not logs:
        raise ValueError(f"{source} holds no run (no {name} in or below it); pass result files by name")
    yield from logs


def _read(files: Iterable[Path]) -> list[results.Record]:
    """Return the distinct records. Records of a run's log get a field "run", its folder without the seed."""
    from sparsebert.report.sections import passed_over

    records: dict[str, results.Record] = {}
    skipped: list[results.Record] = []
    for file in files:
        rows = results.read(file)
        if not rows:
            raise ValueError(f"{file} holds no records")
        unsupported = passed_over(rows)
        if len(unsupported) == len(rows):
            raise ValueError(f"{file} holds no records that a table can show: {_kinds(rows)}")
        skipped += unsupported
        run = {"run": _run(file)} if RunFolder(file.parent).log == file else {}
        for row in rows:
            key = dumps(row, sort_keys=True)
            records[key] = records.get(key, row) | run
    if skipped:
        typer.echo(f"skipped records that no table shows: {_kinds(skipped)}", err=True)
    return list(records.values())


def _run(log: Path) -> str:
    """Return the common name of the runs of several seeds: the folder without its seed."""
    folder = re.sub(r"(^|[-/])seed-\d+$", "", str(log.parent))
    return folder or log.resolve().parent.parent.name


def _kinds(rows: Iterable[Mapping[str, Any]]) -> str:
    """Return the kinds of records with their counts: ``kinds: 'trial' (3), 'x' (1)``."""
    counts = Counter(row["kind"] for row in rows)
    return "kinds: " + ", ".join(f"{kind!r} ({count})" for kind, count in counts.items())
