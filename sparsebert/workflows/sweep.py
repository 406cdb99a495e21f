"""A sweep: the runs of an experiment, each in its own folder, resumed cell by cell.

    cells.json           options with which each cell was last started
    experiment.jsonl     a record for each cell and seed, also for those that did not run
    ROW/COLUMN/seed-N/   the run (:mod:`sparsebert.lottery.run_folder`)

A cell that cannot run is a hole with its reason; the others go on.
"""

from __future__ import annotations

import json
import re
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
from sparsebert.report.format import listed, record_errors
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
# The reasons of a cell that the user left out, and of one whose turn is still to come.
UNSELECTED = "not asked for (--only)"
UNFINISHED = "not finished yet"
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
        selected: The cells to run, as :func:`selected_cells` returns them.
        train: Trains a cell.
        environment: This machine, for the records.
        measure: Measures the speed of a ticket; None for no measurement.
        rerun_changed: Whether runs whose options have changed are deleted and carried out again.
        keep_models: Whether trained models stay; otherwise only those that other cells need.
        local_paths: Paths of this machine, and what reasons in the records name instead.
        say: Called with each line of progress.
    """

    grid: Grid
    out: Path
    selected: Sequence[Cell]
    train: TrainCell
    environment: Record
    measure: MeasureCell | None = None
    rerun_changed: bool = False
    keep_models: bool = False
    local_paths: Mapping[str, str] = field(default_factory=dict)
    say: Callable[[str], object] = lambda line: None
    _started: dict[str, Any] = field(init=False, default_factory=dict)
    _records: dict[Key, Record] = field(init=False, default_factory=dict)

    def run(self) -> list[Record]:
        """Run the cells and return a record for each cell and seed, in the order of the runs.

        Raises:
            ValueError: Another sweep works in the folder, or the folder holds the sweep of another
                experiment.
            OSError: A file cannot be written.
        """
        self.out.mkdir(parents=True, exist_ok=True)
        try:
            with locked(self.out):
                return self._run()
        except BlockingIOError:
            raise ValueError(
                f"another sweep is working in {self.out}: wait for it, or choose another folder"
            ) from None

    def _run(self) -> list[Record]:
        self._started = read_json_object(self.out / CELLS) if (self.out / CELLS).exists() else {}
        with record_errors(f"a record in {self.out / RECORDS}"):
            earlier = {_key(row): row for row in read_records(self.out / RECORDS)}
            self._require_same_experiment(earlier)
            self._say_left_out(earlier)
            self._records = {
                _key_of(cell): self._known(cell, earlier.get(_key_of(cell))) for cell in self.grid.cells
            }
        # A sweep that is killed leaves a record of every cell too.
        self._write()
        for number, cell in enumerate(self.grid.cells, 1):
            if cell in self.selected:
                self.say(f"{cell.name} ({number} of {len(self.grid.cells)})")
                self._records[_key_of(cell)] = self._carry_out(cell)
                self._write()
        return list(self._records.values())

    def _say_left_out(self, earlier: Mapping[Key, Record]) -> None:
        """Name the finished runs of cells that the file no longer has: they leave the records."""
        here = {_key_of(cell) for cell in self.grid.cells}
        names = [
            f"{row}/{column}/seed-{seed}"
            for (row, column, seed), record in earlier.items()
            if record["status"] == DONE and (row, column, seed) not in here
        ]
        if names:
            self.say(f"no longer in the experiment, without a place in its tables: {listed(names)}")

    def _write(self) -> None:
        write_records(self.out / RECORDS, self._records.values())

    def _known(self, cell: Cell, earlier: Record | None) -> Record:
        """Return what an earlier sweep found in a cell with the same options, or a hole."""
        options = described(cell)
        if earlier is None or {name: earlier.get(name) for name in options} != options:
            return self._to_come(cell)
        if earlier["reason"] in (UNSELECTED, UNFINISHED):
            return self._to_come(cell)
        metric, folder = self.grid.metrics.get(cell.place.column), run_folder(self.out, cell.place, cell.seed)
        if earlier["status"] != DONE or metric in (None, earlier["metric"]):
            return refreshed(self.grid, cell, earlier)
        # The file names another metric than it did.
        if not RunFolder(folder).finished():
            return self._to_come(cell)
        speed = {"speed": earlier["speed"]} if "speed" in earlier else {}
        try:
            return done_record(self.grid, cell, folder, self.environment) | speed
        except ValueError as error:
            return self._hole(cell, error)

    def _to_come(self, cell: Cell) -> Record:
        reason = UNFINISHED if cell in self.selected else UNSELECTED
        return hole_record(self.grid, cell, reason, self.environment)

    def _require_same_experiment(self, earlier: Mapping[Key, Record]) -> None:
        for row in earlier.values():
            pair = (row["experiment"], row["small"]), (self.grid.name, self.grid.small)
            if pair[0] != pair[1]:
                names = [f"{name}{', its small preset' if small else ''}" for name, small in pair]
                raise ValueError(
                    f"{self.out} holds the sweep of {names[0]}, not {names[1]}: choose another --out"
                )

    def _carry_out(self, cell: Cell) -> Record:
        """Train a cell and measure its ticket; return its record, also if it cannot run."""
        folder = run_folder(self.out, cell.place, cell.seed)
        try:
            self._require_sources(cell)
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
            text = _with_path_named(text, path, name)
        return kind + text

    def _require_sources(self, cell: Cell) -> None:
        for option, place in cell.sources.items():
            if self._records[place.row, place.column, cell.seed]["status"] != DONE:
                raise ValueError(f"its {option} is that of {place}, which did not run")

    def _prepare(self, cell: Cell, folder: Path) -> None:
        """Check that the folder's run, if any, has the cell's options; delete another if that is asked for.

        The runs that need a deleted one go with it: they began from its results.

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
        if reason is not None:
            self.say(f"{cell.name} runs again: {reason}")
            for other in self._needing(cell):
                self._delete(other, f"it needs {cell.place}")
            self._write()
            shutil.rmtree(folder, ignore_errors=True)
        if self._started.get(cell.name) != options:
            self._started[cell.name] = options
            write_text(self.out / CELLS, json.dumps(self._started, indent=1) + "\n")

    def _needing(self, cell: Cell) -> Iterator[Cell]:
        """Yield the cells that need a cell's results, directly or through others."""
        for other in self.grid.cells:
            if other.seed == cell.seed and cell.place in other.sources.values():
                yield other
                yield from self._needing(other)

    def _delete(self, cell: Cell, reason: str) -> None:
        """Delete a run and its record."""
        folder = run_folder(self.out, cell.place, cell.seed)
        if folder.exists():
            again = "runs again" if cell in self.selected else "is deleted"
            self.say(f"{cell.name} {again}: {reason}")
            shutil.rmtree(folder, ignore_errors=True)
        self._records[_key_of(cell)] = self._to_come(cell)

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


def selected_cells(grid: Grid, patterns: Sequence[str]) -> list[Cell]:
    """Return the cells of some places, and those whose results they need, in the order of their runs.

    Args:
        grid: The experiment.
        patterns: Patterns of places, such as "imp/*"; empty for all.

    Raises:
        ValueError: A pattern is not row/column, or matches no cell; the nearest are named.
    """
    places = [str(place) for place in grid.places()]
    for pattern in patterns:
        if not any(fnmatchcase(place, pattern) for place in places):
            raise unknown("cell (--only row/column, * for all)", pattern, places)
    needed: set[Key] = set()
    # A cell comes after those that it needs.
    for cell in reversed(grid.cells):
        selected = not patterns or any(fnmatchcase(str(cell.place), each) for each in patterns)
        if selected or _key_of(cell) in needed:
            needed.add(_key_of(cell))
            needed |= {(place.row, place.column, cell.seed) for place in cell.sources.values()}
    return [cell for cell in grid.cells if _key_of(cell) in needed]


def _key(row: Record) -> Key:
    return row["row"], row["column"], row["seed"]


def _key_of(cell: Cell) -> Key:
    return cell.place.row, cell.place.column, cell.seed


def _with_path_named(text: str, path: str, name: str) -> str:
    """Return a text with a name in place of a path, but not of the same letters within another word."""
    return re.sub(rf"(?<![\w./-]){re.escape(path)}(?![\w-])", lambda _: name, text)


def _difference(before: Mapping[str, Any], now: Mapping[str, Any]) -> str | None:
    """Return the first option that differs in words, or None if all are equal."""
    for group in now:
        old, new = before.get(group, {}), now[group]
        for name in {**old, **new}:
            if old.get(name) != new.get(name):
                return f"{name} was {old.get(name, 'omitted')}, is {new.get(name, 'omitted')}"
    return None
