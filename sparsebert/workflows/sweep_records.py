"""The records of a sweep: one for each cell and seed, of kind "experiment", also for cells that did not run.

Fields:
    experiment, title, small      name of the file, title, and whether it is the small preset
    source, notes, unit           origin of the published numbers, and how they were made
    relative_to                   row whose metric is subtracted in the paper's numbers, or null
    row, column                   names of row and column; row_label, column_label: their labels
    place                         [row, column], numbers from 0 in the order of the table
    seed                          seed of the run
    options, sources              options of ``sparsebert train`` as the file has them; option -> "row/column"
    model, task, method           the same three by themselves
    published                     {mean, std, column} of the paper in its unit, or null; column: label of the
                                  paper's column if the small preset has another, else ""
    status, reason                "done", or "not run" and why
and of a cell that is done:
    metric, value                 name and value of the metric of the run's ticket, on the validation data
    chance                        the metric without any learning, or null
    sparsity, density             of the ticket; encoder_sparsity of all encoder matrices
    masks_sha256, ticket_bytes    digest of the masks and size of the ticket's file
    curve                         [sparsity, value] of each round
    steps, rounds, sessions       optimizer steps, rounds, and starts of rounds (more after a kill)
    seconds                       wall time of the run
    memory                        peak memory of the last round
    resources, fingerprints       as in the record of the run
    speed                         if measured: see :mod:`sparsebert.workflows.sweep_speed`
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from sparsebert import results
from sparsebert.atomic import write_text
from sparsebert.experiments.grid import Cell, Grid
from sparsebert.lottery.run_folder import RunFolder
from sparsebert.results import Record

KIND = "experiment"
RECORDS = "experiment.jsonl"
DONE, NOT_RUN = "done", "not run"


def described(cell: Cell) -> dict[str, Any]:
    """Return a cell's options and sources as plain JSON values."""
    return {
        "options": dict(cell.options),
        "sources": {name: str(each) for name, each in cell.sources.items()},
    }


def hole_record(grid: Grid, cell: Cell, reason: str, environment: Record) -> Record:
    """Return the record of a cell that did not run."""
    return _record(grid, cell, {"status": NOT_RUN, "reason": reason}, environment)


def done_record(grid: Grid, cell: Cell, folder: Path, environment: Record) -> Record:
    """Return the record of a finished run.

    Raises:
        ValueError: The run has no such metric.
    """
    run = RunFolder(folder)
    finished, rounds = run.finished(), run.rounds_done()
    assert finished is not None
    best = rounds[finished["round"]]
    metric = grid.metrics.get(cell.place.column) or next(iter(best["metrics"]))
    if metric not in best["metrics"]:
        raise ValueError(f"the run has no metric {metric!r}; its metrics: {', '.join(best['metrics'])}")
    chance = best.get("chance") or {}
    fields = {
        "status": DONE,
        "reason": None,
        "metric": metric,
        "value": best["metrics"][metric],
        "chance": chance.get(metric),
        **{name: best[name] for name in ("sparsity", "density", "encoder_sparsity", "masks_sha256")},
        "ticket_bytes": run.final_ticket.stat().st_size,
        "curve": [[row["sparsity"], row["metrics"][metric]] for row in rounds],
        "steps": sum(row["steps"] - row["first_step"] for row in rounds),
        "rounds": len(rounds),
        "sessions": sum(row["sessions"] for row in rounds),
        "seconds": finished["seconds"],
        "memory": rounds[-1]["memory"],
        **{name: finished.get(name) for name in ("resources", "fingerprints")},
    }
    return _record(grid, cell, fields, best["environment"] or environment)


def refreshed(grid: Grid, cell: Cell, earlier: Record) -> Record:
    """Return an earlier record of a cell with the labels and published numbers that the file has now."""
    now = _record(grid, cell, {}, earlier["environment"])
    return now | {name: value for name, value in earlier.items() if name not in now or name == "timestamp"}


def read_records(file: Path) -> list[Record]:
    """Return the records of an earlier sweep in a folder; none if there was no sweep."""
    return results.read(file, KIND) if file.exists() else []


def write_records(file: Path, records: Iterable[Record]) -> None:
    """Replace the records of a sweep."""
    write_text(file, "".join(json.dumps(row, allow_nan=False) + "\n" for row in records))


def _record(grid: Grid, cell: Cell, fields: Record, environment: Record) -> Record:
    row, column = cell.place.row, cell.place.column
    published = grid.published.get(cell.place)
    return results.stamp(
        KIND,
        {
            "experiment": grid.name,
            "title": grid.title,
            "small": grid.small,
            "source": asdict(grid.source) if grid.source else None,
            "notes": grid.notes,
            "unit": grid.unit,
            "relative_to": grid.relative_to or None,
            "row": row,
            "column": column,
            "row_label": grid.rows[row],
            "column_label": grid.columns[column],
            "place": [list(grid.rows).index(row), list(grid.columns).index(column)],
            "seed": cell.seed,
            **described(cell),
            "model": cell.options.get("model"),
            "task": cell.options.get("task"),
            "method": cell.options.get("method", "imp"),
            "published": asdict(published) if published else None,
            **fields,
            "environment": environment,
        },
    )
