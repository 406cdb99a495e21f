"""The command `inspect`."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sparsebert.cli.console import print_tables
from sparsebert.cli.path_checks import require_folders, require_records, require_writable
from sparsebert.cli.shared_options import JsonFile, comma_separated, require_share

if TYPE_CHECKING:
    from sparsebert.report.inspection import Inspection
    from sparsebert.report.page.files import Files
    from sparsebert.report.sections import Section


def inspect(
    tickets: Annotated[
        list[str],
        typer.Argument(
            metavar="TICKET",
            help="ticket file in any supported format, folder of a run, or folder that contains runs at any "
            "depth; NAME=PATH gives it a name",
            show_default=False,
        ),
    ],
    model: Annotated[
        str | None,
        typer.Option(
            help="hub id or local folder: the model of tickets that record neither shapes nor the number of "
            "heads, such as those of other projects"
        ),
    ] = None,
    sparsity: Annotated[
        float | None, typer.Option(help="for runs with several rounds: sparsity of the round to use")
    ] = None,
    show: Annotated[
        str | None,
        typer.Option(
            help="what to show, separated by commas: density, heads, survivors, overlap, masks [default: all "
            "that the tickets have]"
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="folder for pictures (SVG and PNG) and the figures behind them (CSV)")
    ] = None,
    html: Annotated[Path | None, typer.Option(help="write one self-contained page with pictures")] = None,
    json: JsonFile = None,
) -> None:
    """Show where the weights of tickets stay, and what tickets have in common.

    For one ticket: its density by layer, matrix and head, and what its masks leave empty. For several: which
    heads and MLPs survive over seeds, and how much every two overlap, beside what chance gives.
    """
    parts = None if show is None else comma_separated("--show", show)
    require_share("--sparsity", sparsity)
    require_records("--json", json)
    require_folders({"--out": out})
    require_writable({"--html": html, "--json": json})
    from sparsebert import results
    from sparsebert.bench.environment import detect
    from sparsebert.report.format import listed
    from sparsebert.report.inspect_tables import PARTS, inspect_tables
    from sparsebert.report.inspection import inspect_labelled
    from sparsebert.report.page import Report, require_renderer
    from sparsebert.report.plots import require_matplotlib
    from sparsebert.report.sections import Section
    from sparsebert.workflows.ticket_sources import labelled_tickets, named_sources, require_runs

    if unknown := [part for part in parts or () if part not in PARTS]:
        raise ValueError(f"--show must be of {', '.join(PARTS)}, got {unknown[0]!r}")
    if out is not None:
        require_matplotlib()
    if html is not None:
        require_renderer()
    sources = named_sources(tickets)
    if sparsity is not None:
        require_runs(sources.values())
    shapes = heads = None
    if model is not None:
        from sparsebert.bench.workload import hush_transformers
        from sparsebert.bert import is_bert_like, structure
        from sparsebert.tasks.models import skeleton

        hush_transformers()
        shapes = skeleton(model)
        # Matrices of other families are not assigned to heads.
        heads = structure(shapes).num_heads if is_bert_like(shapes) else None
    inspection = inspect_labelled(labelled_tickets(sources, shapes, sparsity), heads)
    _require_parts(inspection, parts or ())
    shown = parts or PARTS
    environment = detect().record()
    records = [{**row, "environment": environment} for row in inspection.records]
    print_tables(inspect_tables(records, shown, brief=parts is None))
    files = inspection.save(out, shown) if out is not None else []
    if out is not None:
        typer.echo(f"wrote {len(files)} files to {out}")
    if html is not None:
        from sparsebert.atomic import write_text
        from sparsebert.report.inspect_plots import MOST_DRAWN, inspect_pictures

        pictures = inspect_pictures(records, shown, most=MOST_DRAWN)
        section = Section(inspect_tables(records, shown), pictures, "Where the weights stay")
        page = Report(f"Tickets: {listed(sources)}", records, [section], list(sources))
        write_text(html, page.html(html, _files_of(section, files)))
        typer.echo(f"wrote {html}: {page.size}")
    if json is not None:
        results.append(json, records)


def _files_of(section: Section, files: list[Path]) -> Files:
    """Return the files of each picture, and the CSV files as those of the section."""
    files_of: dict[int, list[Path]] = {id(section): [file for file in files if file.suffix == ".csv"]}
    stems = Counter(picture.stem for picture in section.pictures)
    for picture in section.pictures:
        if stems[picture.stem] == 1:
            files_of[id(picture)] = [file for file in files if file.stem == picture.stem]
    return files_of


def _require_parts(inspection: Inspection, parts: list[str] | tuple[()]) -> None:
    """Raise ValueError if the tickets do not have a part that the user names."""
    from sparsebert.tickets.kept_weights import HEAD_TYPES

    tickets = [row for row in inspection.records if row["kind"] == "inspect"]
    unknown = next((row for row in tickets if row["heads"] is None), None)
    for part in parts:
        if part in ("overlap", "survivors") and len(tickets) < 2:
            raise ValueError(f"--show {part} needs at least two tickets, got {len(tickets)}")
        if part in ("heads", "survivors") and unknown is not None:
            why = "has no attention matrix of a BERT-like model, so its heads cannot be told apart"
            if any(each["type"] in HEAD_TYPES for each in unknown["matrices"]):
                why = "does not record the number of attention heads; pass --model"
            raise ValueError(f"--show {part}: {unknown['name']} {why}")
