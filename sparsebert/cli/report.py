"""The command `report`: all that results and runs hold. Heavy modules are imported when it runs."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from json import dumps
from pathlib import Path
from typing import Annotated, Any

import typer

from sparsebert import results
from sparsebert.atomic import write_text
from sparsebert.cli.option_groups import JsonFile, print_tables
from sparsebert.cli.path_checks import require_records, require_writable
from sparsebert.lottery.run_folder import RunFolder


def report(
    sources: Annotated[
        list[Path],
        typer.Argument(
            metavar="FILE_OR_FOLDER...",
            help="what --json of a command or --out of a benchmark wrote; folders of runs, by seed or not, "
            "or with runs anywhere below them",
            show_default=False,
        ),
    ],
    html: Annotated[
        Path | None, typer.Option(help="write one page that needs nothing else, with pictures")
    ] = None,
    markdown: Annotated[Path | None, typer.Option(help="write the tables as markdown")] = None,
    json: JsonFile = None,
) -> None:
    """Show every table that results hold: of runs, tickets and benchmarks, these with their machines.

    All that is given is taken together, and a record that is there twice counts once. Runs of several seeds
    are summarised, and judged by dense runs where these are given too.
    """
    files = dict.fromkeys(file for source in sources for file in _files(source))
    targets = {"--html": html, "--markdown": markdown, "--json": json}
    require_writable(targets)
    _require_apart(targets, files)
    require_records("--json", json)
    from sparsebert.report.page import Report, require_renderer
    from sparsebert.report.sections import sections

    if html is not None:
        require_renderer()
    records = _read(files)
    title = ", ".join(str(source) if source.is_dir() else source.name for source in sources)
    made = Report(f"Results: {title}", records, sections(records))
    if not made.tables:
        raise ValueError(f"no table can be made of what {title} holds: {_kinds(records)}")
    if html is None and markdown is None:
        print_tables(made.tables)
    for file, page in ((html, made.html), (markdown, made.markdown)):
        if file is not None:
            write_text(file, page())
            typer.echo(f"wrote {file}: {made.size}")
    if json is not None:
        results.append(json, [results.stamp("report", table.record()) for table in made.tables])


def _files(source: Path) -> Iterator[Path]:
    """The file itself, or the logs of the runs in a folder, in the order of their names and numbers."""
    if not source.exists():
        raise ValueError(f"{source}: there is no such file or folder")
    if not source.is_dir():
        yield source
        return
    name = RunFolder(source).log.name
    logs = sorted(source.rglob(name), key=lambda log: _natural(str(log)))
    if not logs and RunFolder(source).run_json.exists():
        raise ValueError(f"{source} holds a run that has finished no round yet: there is nothing to report")
    if not logs:
        raise ValueError(f"{source} holds no run (no {name} in it or below); result files are given by name")
    yield from logs


def _natural(text: str) -> list[tuple[int, str]]:
    """seed-2 comes before seed-10."""
    return [(int(part), "") if part.isdecimal() else (0, part) for part in re.split(r"(\d+)", text)]


def _require_apart(targets: Mapping[str, Path | None], files: Iterable[Path]) -> None:
    """Raise ValueError where two files to write are the same, or one is among those to read."""
    taken = {file.resolve(): f"{file}, which is to be read" for file in files}
    for option, target in targets.items():
        if target is None:
            continue
        if (place := target.resolve()) in taken:
            raise ValueError(f"{option} {target} would go into {taken[place]}: choose another name")
        taken[place] = f"that of {option}"


def _read(files: Iterable[Path]) -> list[results.Record]:
    """The records, each once; those of a run's log with the folder of the run, without its seed, as "run"."""
    from sparsebert.report.sections import passed_over

    found: dict[str, results.Record] = {}
    unknown: list[results.Record] = []
    for file in files:
        rows = results.read(file)
        if not rows:
            raise ValueError(f"{file} holds no record")
        strange = passed_over(rows)
        if len(strange) == len(rows):
            raise ValueError(f"{file} holds no record that a table is made of: {_kinds(rows)}")
        unknown += strange
        run = {"run": _run(file)} if RunFolder(file.parent).log == file else {}
        for row in rows:
            key = dumps(row, sort_keys=True)
            found[key] = found.get(key, row) | run
    if unknown:
        typer.echo(f"passed over, for no table is made of them: {_kinds(unknown)}", err=True)
    return list(found.values())


def _run(log: Path) -> str:
    """What the runs of several seeds have in common: the folder without its seed."""
    folder = re.sub(r"(^|[-/])seed-\d+$", "", str(log.parent))
    return folder or log.resolve().parent.parent.name


def _kinds(rows: Iterable[Mapping[str, Any]]) -> str:
    """``kinds found: 'trial' (3), 'x' (1)``."""
    counts = Counter(row["kind"] for row in rows)
    return "kinds found: " + ", ".join(f"{kind!r} ({count})" for kind, count in counts.items())
