"""A sweep: the runs of an experiment, each in its own folder, resumed cell by cell.

    cells.json           options with which each cell was last started
    experiment.jsonl     a record for each cell and seed, also for those that did not run
    ROW/COLUMN/seed-N/   the run (:mod:`sparsebert.lottery.run_folder`)

A cell that cannot run is a hole with its reason; the others go on.
"""

from __future__ import annotations

import json
import shutil
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from sparsebert.atomic import locked, write_text
from sparsebert.experiments.grid import Cell, Grid, Place, Value
from sparsebert.json_object import read_json_object
from sparsebert.lottery.run_folder import RunFolder
from sparsebert.results import Record
from sparsebert.workflows.sweep_records import (
    DONE,
    RECORDS,
    described,
    done_record,
    hole_record,
    read_records,
    refreshed,
    write_records,
)
from sparsebert_kernels.errors import one_line, unknown

CELLS = "cells.json"
# The reason of a cell that the user left out.
UNSELECTED = "not asked for (--only)"
_MOST_REASON = 400
Key = tuple[str, str, int]
# Trains the run of a cell in a folder, or only reads a finished one.
TrainCell = Callable[[Cell, Path], object]
# Measures the speed of a finished run's ticket; returns fields of a record, or None for no measurement.
MeasureCell = Callable[[Cell, Path], Record | None]


@dataclass
class Sweep:
    """An experiment and how to run it.

    Attributes:
        grid: The experiment.
        out: Folder of the sweep.
        train: Trains a cell.
        environment: This machine, for the records.
        measure: Measures the speed of a ticket; None for no measurement.
        only: Patterns of cells, such as "imp/*"; empty for all. The cells that they need run as well.
        rerun_changed: Whether runs whose options have changed are deleted and carried out again.
        keep_models: Whether trained models stay; otherwise only those that other cells need.
        local_paths: Paths of this machine, and what reasons in the records name instead.
        say: Called with each line of progress.
    """

    grid: Grid
    out: Path
    train: TrainCell
    environment: Record
    measure: MeasureCell | None = None
    only: Sequence[str] = ()
    rerun_changed: bool = False
    keep_models: bool = False
    local_paths: Mapping[str, str] = field(default_factory=dict)
    say: Callable[[str], object] = lambda line: None
    _started: dict[str, Any] = field(init=False, default_factory=dict)
    _again: set[str] = field(init=False, default_factory=set)

    def run(self) -> list[Record]:
        """Run the cells and return a record for each cell and seed, in the order of the runs.

        Raises:
            ValueError: A pattern names no cell, another sweep works in the folder, or the folder holds
                the sweep of another experiment.
            OSError: A file cannot be written.
        """
        selected = selected_cells(self.grid, self.only)
        self.out.mkdir(parents=True, exist_ok=True)
        try:
            with locked(self.out):
                return self._run(selected)
        except BlockingIOError:
            raise ValueError(
                f"another sweep is working in {self.out}: wait for it, or choose another folder"
            ) from None

    def _run(self, selected: set[str]) -> list[Record]:
        file = self.out / RECORDS
        earlier = {_key(row): row for row in read_records(file)}
        self._require_same_experiment(earlier)
        self._started = read_json_object(self.out / CELLS) if (self.out / CELLS).exists() else {}
        records: dict[Key, Record] = {}
        for number, cell in enumerate(self.grid.cells, 1):
            key = cell.place.row, cell.place.column, cell.seed
            if cell.name in selected:
                self.say(f"{cell.name} ({number} of {len(self.grid.cells)})")
                records[key] = self._carry_out(cell, records)
            else:
                records[key] = self._left_out(cell, earlier.get(key))
            # A killed sweep keeps what an earlier one knew of the cells that are still to come.
            to_come = {key: row for key, row in self._known(earlier) if key not in records}
            write_records(file, [*records.values(), *to_come.values()])
        return list(records.values())

    def _known(self, earlier: Mapping[Key, Record]) -> Iterator[tuple[Key, Record]]:
        for cell in self.grid.cells:
            if (row := earlier.get(key := (cell.place.row, cell.place.column, cell.seed))) is not None:
                yield key, row

    def _require_same_experiment(self, earlier: Mapping[Key, Record]) -> None:
        for row in earlier.values():
            pair = (row["experiment"], row["small"]), (self.grid.name, self.grid.small)
            if pair[0] != pair[1]:
                names = [f"{name}{', its small preset' if small else ''}" for name, small in pair]
                raise ValueError(
                    f"{self.out} holds the sweep of {names[0]}, not {names[1]}: choose another --out"
                )

    def _carry_out(self, cell: Cell, records: Mapping[Key, Record]) -> Record:
        """Train a cell and measure its ticket; return its record, also if it cannot run."""
        folder = run_folder(self.out, cell.place, cell.seed)
        try:
            self._require_sources(cell, records)
            self._prepare(cell, folder)
            self.train(cell, folder)
            record = done_record(self.grid, cell, folder, self.environment)
        except Exception as error:  # Weights, data and libraries fail in too many ways to name.
            return self._hole(cell, error)
        if self.measure is not None and record["sparsity"] and (speed := self._measured(cell, folder)):
            record["speed"] = speed
        self._drop_model(cell, folder)
        return record

    def _measured(self, cell: Cell, folder: Path) -> Record | None:
        assert self.measure is not None
        try:
            return self.measure(cell, folder)
        except Exception as error:  # The run stays; what its ticket cannot show has its reason.
            reason = self._reason(error)
            self.say(f"{cell.name}: no speed: {reason}")
            return {"failed": reason}

    def _hole(self, cell: Cell, error: Exception) -> Record:
        reason = self._reason(error)
        if explanation := self.grid.unavailable.get(cell.place.column):
            reason = f"{reason} ({explanation})"
        self.say(f"{cell.name} did not run: {reason}")
        return hole_record(self.grid, cell, reason, self.environment)

    def _reason(self, error: Exception) -> str:
        """Return why a cell failed, in one line; an unexpected error also prints its traceback."""
        kind = ""
        if not isinstance(error, ValueError | OSError):
            traceback.print_exception(error)
            kind = f"{type(error).__name__}: "
        text = one_line(error, _MOST_REASON)
        for path, name in {**self.local_paths, str(self.out): "OUT"}.items():
            text = text.replace(path, name)
        return kind + text

    def _left_out(self, cell: Cell, earlier: Record | None) -> Record:
        """Return what an earlier sweep found in a cell with the same options, or a hole."""
        if earlier is not None and {name: earlier.get(name) for name in described(cell)} == described(cell):
            return refreshed(self.grid, cell, earlier)
        return hole_record(self.grid, cell, UNSELECTED, self.environment)

    def _require_sources(self, cell: Cell, records: Mapping[Key, Record]) -> None:
        for option, place in cell.sources.items():
            if records[place.row, place.column, cell.seed]["status"] != DONE:
                raise ValueError(f"its {option} is that of {place}, which did not run")

    def _prepare(self, cell: Cell, folder: Path) -> None:
        """Check that the folder's run, if any, has the cell's options; delete another if that is asked for.

        Raises:
            ValueError: The options have changed.
        """
        options = described(cell)
        reason = None
        if folder.exists() and cell.name in self._started:
            reason = _difference(self._started[cell.name], options)
        if reason is not None and not self.rerun_changed:
            raise ValueError(
                f"its options have changed since it ran ({reason}): run it again with --rerun-changed, or "
                "choose another --out"
            )
        if any(f"{place}/seed-{cell.seed}" in self._again for place in cell.sources.values()):
            reason = reason or "a cell that it needs ran again"
        if reason is not None:
            self.say(f"{cell.name} runs again: {reason}")
            self._again.add(cell.name)
            shutil.rmtree(folder, ignore_errors=True)
        if self._started.get(cell.name) != options:
            self._started[cell.name] = options
            write_text(self.out / CELLS, json.dumps(self._started, indent=1) + "\n")

    def _drop_model(self, cell: Cell, folder: Path) -> None:
        """Delete the trained model of a finished run: weights of all runs would fill the disk."""
        needed = any(
            option in ("model", "teacher") and place == cell.place
            for other in self.grid.cells
            for option, place in other.sources.items()
        )
        if not needed and not self.keep_models:
            shutil.rmtree(RunFolder(folder).model, ignore_errors=True)


def run_folder(out: Path, place: Place, seed: int) -> Path:
    """Return the folder of a run below the folder of the sweep."""
    return out / place.row / place.column / f"seed-{seed}"


def with_sources(cell: Cell, out: Path) -> dict[str, Value]:
    """Return a cell's options, with the paths of the results of other cells."""
    options = dict(cell.options)
    for option, place in cell.sources.items():
        run = RunFolder(run_folder(out, place, cell.seed))
        options[option] = str(run.model if option == "model" else run.path)
    return options


def selected_cells(grid: Grid, patterns: Sequence[str]) -> set[str]:
    """Return the names of the runs of some cells, and of the runs whose results they need.

    Raises:
        ValueError: A pattern is not row/column, or matches no cell; the nearest is offered.
    """
    places = [str(place) for place in grid.places()]
    for pattern in patterns:
        if not any(fnmatchcase(place, pattern) for place in places):
            raise unknown("cell (--only row/column, * for all)", pattern, places)
    by_key = {(cell.place, cell.seed): cell for cell in grid.cells}
    names: set[str] = set()
    pending = [
        cell
        for cell in grid.cells
        if not patterns or any(fnmatchcase(str(cell.place), each) for each in patterns)
    ]
    while pending:
        cell = pending.pop()
        names.add(cell.name)
        pending += [by_key[place, cell.seed] for place in cell.sources.values()]
    return names


def _key(row: Record) -> Key:
    return row["row"], row["column"], row["seed"]


def _difference(before: Mapping[str, Any], now: Mapping[str, Any]) -> str | None:
    """Return the first option that differs in words, or None if all are equal."""
    for group in now:
        old, new = before.get(group, {}), now[group]
        for name in {**old, **new}:
            if old.get(name) != new.get(name):
                return f"{name} was {old.get(name, 'omitted')}, is {new.get(name, 'omitted')}"
    return None
