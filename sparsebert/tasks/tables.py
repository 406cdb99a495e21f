"""Reading of columns from TSV, CSV and JSON-lines files; every error names file and line."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from sparsebert.file_types import require_regular
from sparsebert.tasks.registry import Task

Column = str | int
Rows = Iterator[tuple[int, tuple[str, ...]]]


def read_text(path: Path) -> str:
    """Read UTF-8 text without its byte-order mark. Raises ValueError, with file and line, if invalid."""
    require_regular(path)
    data = path.read_bytes()
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ValueError(
            f"{path}:{line}: not UTF-8 (byte 0x{data[error.start]:02x}); save the file as UTF-8"
        ) from None


def lines_of(text: str) -> list[str]:
    """Return the lines of a text. Only a newline ends a line: form feeds and U+2028 are text."""
    lines = [line.removesuffix("\r") for line in text.split("\n")]
    while lines and not lines[-1]:
        lines.pop()
    return lines


def read_columns(path: Path, columns: Sequence[Column]) -> Rows:
    """Yield the line number and the requested columns of every row, as strings.

    ``.tsv`` and ``.txt`` are split at newlines and tabs, without quotes (GLUE's convention), ``.csv`` follows
    RFC 4180, and ``.jsonl`` holds one object per line.

    Args:
        path: The table.
        columns: Columns by name, or by number in a file without a header.

    Raises:
        ValueError: With file and line, for a missing column, a row of another width, or another kind of file.
        FileNotFoundError: If ``path`` does not exist.
    """
    readers: dict[str, Callable[[Path, Sequence[Column]], Rows]] = {
        ".tsv": _tsv,
        ".txt": _tsv,
        ".csv": _csv,
        ".jsonl": _jsonl,
    }
    suffix = path.suffix.lower()
    if suffix not in readers:
        raise ValueError(
            f"{path}: the name of a table must end in .tsv, .csv or .jsonl, got {suffix or 'no ending'}"
        )
    return readers[suffix](path, columns)


def label_parser(task: Task, written: Sequence[str]) -> Callable[[str, str], int | float]:
    """Return a function that maps the text of a label, and its place, to its class index or score.

    The function raises ValueError, naming the place ("file:line"), for a class that is not in ``written``, or
    for a score that is not a finite number within the task's bounds.
    """
    if task.kind == "classification":
        indices = {label: index for index, label in enumerate(written)}

        def class_index(label: str, place: str) -> int:
            if label not in indices:
                raise ValueError(
                    f"{place}: label of {task.name} must be one of {', '.join(written)}, got {label!r}"
                )
            return indices[label]

        return class_index

    lowest, highest = task.bounds

    def score(label: str, place: str) -> float:
        try:
            value = float(label)
        except ValueError:
            value = math.nan
        if not (math.isfinite(value) and lowest <= value <= highest):
            bounds = f" from {lowest:g} to {highest:g}" if math.isfinite(lowest) else ""
            raise ValueError(f"{place}: label must be a finite number{bounds}, got {label!r}")
        return value

    return score


def _tsv(path: Path, columns: Sequence[Column]) -> Rows:
    rows = ((number, line.split("\t")) for number, line in enumerate(lines_of(read_text(path)), 1))
    return _pick(path, rows, columns)


def _csv(path: Path, columns: Sequence[Column]) -> Rows:
    reader = csv.reader(io.StringIO(read_text(path), newline=""), strict=True)

    def rows() -> Iterator[tuple[int, list[str]]]:
        start = 1
        try:
            for row in reader:
                if row:
                    yield start, row
                start = reader.line_num + 1
        except csv.Error as error:
            raise ValueError(f"{path}:{start}: not CSV: {error}") from None

    return _pick(path, rows(), columns)


def _pick(path: Path, rows: Iterator[tuple[int, list[str]]], columns: Sequence[Column]) -> Rows:
    positions: list[int] = []
    width = 0
    for number, row in rows:
        if not positions:
            width = len(row)
            named = not all(isinstance(column, int) for column in columns)
            positions = [_position(column, row, f"{path}:{number}") for column in columns]
            if named:
                continue
        if len(row) != width:
            raise ValueError(f"{path}:{number}: expected {width} columns as in line 1, got {len(row)}")
        yield number, tuple(row[position] for position in positions)


def _position(column: Column, first: list[str], place: str) -> int:
    if isinstance(column, str):
        if first.count(column) != 1:
            problem = "two columns" if column in first else "no column"
            raise ValueError(f"{place}: {problem} {column!r}; the columns are {', '.join(first)}")
        return first.index(column)
    if column >= len(first):
        raise ValueError(f"{place}: expected at least {column + 1} columns, got {len(first)}")
    return column


def _jsonl(path: Path, columns: Sequence[Column]) -> Rows:
    for number, line in enumerate(lines_of(read_text(path)), 1):
        place = f"{path}:{number}"
        try:
            row = json.loads(line)
        except (json.JSONDecodeError, RecursionError) as error:
            raise ValueError(f"{place}: not JSON: {getattr(error, 'msg', 'nested too deeply')}") from None
        if not isinstance(row, dict):
            raise ValueError(f"{place}: expected a JSON object, got {type(row).__name__}")
        values = []
        for column in columns:
            if column not in row:
                raise ValueError(f"{place}: no column {column!r}; the columns are {', '.join(row)}")
            value = row[column]
            if not isinstance(value, str | int | float):
                raise ValueError(
                    f"{place}: column {column!r} must hold text or a number, got {json.dumps(value)[:40]}"
                )
            values.append(value if isinstance(value, str) else json.dumps(value))
        yield number, tuple(values)
