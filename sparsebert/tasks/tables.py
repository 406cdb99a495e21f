"""Reading of columns from TSV, CSV and JSON files; every error names file and line."""

from __future__ import annotations

import csv
import io
import json
import math
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from sparsebert.file_types import require_regular
from sparsebert.tasks.registry import Task

Column = str | int
Rows = Iterator[tuple[int, tuple[str, ...]]]

# Characters without width, which str.strip() leaves in place: byte-order marks and zero-width spaces.
_INVISIBLE = "\ufeff\u200b\u200c\u200d\u2060\u00ad"

# Not all texts that float() accepts: "1_1" and "inf" may be names.
NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]{1,3})?")

# JSON escapes of these decode to text that neither UTF-8 nor a tokenizer accepts.
_SURROGATE = re.compile("[\ud800-\udfff]")

# Names of labels in a message or line.
_MOST_NAMES = 20


def stripped(text: str) -> str:
    """Return a text without blanks and invisible characters around it."""
    text = text.strip()
    while text and (text[0] in _INVISIBLE or text[-1] in _INVISIBLE):
        text = text.strip(_INVISIBLE).strip()
    return text


def shortened(names: Iterable[str]) -> str:
    """Return names, separated by commas; of many names the first ones, and the number of the others."""
    names = list(names)
    others = len(names) - _MOST_NAMES
    return ", ".join(names if others <= 0 else [*names[:_MOST_NAMES], f"and {others} more"])


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
    RFC 4180, ``.jsonl`` and ``.ndjson`` hold one object per line, and ``.json`` holds a list of objects or
    one object per line. Blank lines are skipped, blanks around the names of columns are ignored, and a null
    of JSON is read as an empty string.

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
        ".jsonl": _json_lines,
        ".ndjson": _json_lines,
        ".json": _json,
    }
    suffix = path.suffix.lower()
    if suffix not in readers:
        raise ValueError(
            f"{path}: the name of a table must end in .tsv, .csv, .jsonl or .json, "
            f"got {suffix or 'no ending'}"
        )
    return readers[suffix](path, columns)


def label_parser(task: Task, written: Sequence[str], remedy: str = "") -> Callable[[str, str], int | float]:
    """Return a function that maps the text of a label, and its place, to its class index or score.

    The function ignores blanks around the label. It raises ValueError, naming the place ("file:line"), for a
    class that is not in ``written``, with the ``remedy``, or for a score that is not a finite number within
    the task's bounds.
    """
    if task.kind == "classification":
        indices = {stripped(label): index for index, label in enumerate(written)}

        def class_index(label: str, place: str) -> int:
            index = indices.get(stripped(label))
            if index is None:
                raise ValueError(
                    f"{place}: label of {task.name} must be one of {shortened(written)}, "
                    f"got {label!r}{remedy}"
                )
            return index

        return class_index

    lowest, highest = task.bounds

    def score(label: str, place: str) -> float:
        text = stripped(label)
        value = float(text) if NUMBER.fullmatch(text) else math.nan
        if not (math.isfinite(value) and lowest <= value <= highest):
            bounds = f" from {lowest:g} to {highest:g}" if math.isfinite(lowest) else ""
            raise ValueError(f"{place}: label must be a finite number{bounds}, got {label!r}")
        return value

    return score


def _tsv(path: Path, columns: Sequence[Column]) -> Rows:
    rows = ((number, line.split("\t")) for number, line in enumerate(lines_of(read_text(path)), 1))
    return _pick(path, rows, columns)


def _csv(path: Path, columns: Sequence[Column]) -> Rows:
    text = read_text(path)
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    rows: list[tuple[int, list[str]]] = []
    start = 1
    # The limit belongs to the module, so the file is read whole while it is raised.
    limit = csv.field_size_limit(max(len(text), csv.field_size_limit()))
    try:
        for row in reader:
            rows.append((start, row))
            start = reader.line_num + 1
    except csv.Error as error:
        raise ValueError(f"{path}:{start}: not CSV: {error}") from None
    finally:
        csv.field_size_limit(limit)
    return _pick(path, iter(rows), columns)


def _pick(path: Path, rows: Iterator[tuple[int, list[str]]], columns: Sequence[Column]) -> Rows:
    positions: list[int] = []
    header = width = 0
    for number, row in rows:
        if len(row) <= 1 and not any(map(stripped, row)):
            continue  # a blank line
        if not positions:
            header, width = number, len(row)
            named = not all(isinstance(column, int) for column in columns)
            positions = [_position(column, row, f"{path}:{number}") for column in columns]
            if named:
                continue
        if len(row) != width:
            raise ValueError(f"{path}:{number}: expected {width} columns as in line {header}, got {len(row)}")
        yield number, tuple(row[position] for position in positions)


def _position(column: Column, first: list[str], place: str) -> int:
    if isinstance(column, str):
        names = [stripped(name) for name in first]
        if names.count(stripped(column)) != 1:
            problem = "two columns" if stripped(column) in names else "no column"
            separated = len(names) == 1 and any(mark in names[0] for mark in ";,\t")
            hint = "; separate columns by commas in .csv, by tabs in .tsv" if separated else ""
            raise ValueError(f"{place}: {problem} {column!r}; the columns are {', '.join(names)}{hint}")
        return names.index(stripped(column))
    if column >= len(first):
        raise ValueError(f"{place}: expected at least {column + 1} columns, got {len(first)}")
    return column


def _json_lines(path: Path, columns: Sequence[Column]) -> Rows:
    for number, line in enumerate(lines_of(read_text(path)), 1):
        if stripped(line):
            yield number, _values(_decoded(path, number, stripped(line)), columns, f"{path}:{number}")


def _json(path: Path, columns: Sequence[Column]) -> Rows:
    """Yield the rows of a list of objects, or of a file of JSON lines under the name ``.json``."""
    text = read_text(path)
    at = _next(text, 0)
    if text[at : at + 1] != "[":
        yield from _json_lines(path, columns)
        return
    decoder, number, counted = json.JSONDecoder(object_pairs_hook=_Row), 1, 0
    at = _next(text, at + 1)
    while text[at : at + 1] != "]":
        number, counted = number + text.count("\n", counted, at), at
        try:
            row, at = decoder.raw_decode(text, at)
        except (ValueError, RecursionError) as error:
            raise _not_json(path, getattr(error, "lineno", number), error) from None
        yield number, _values(row, columns, f"{path}:{number}")
        at = _next(text, at)
        if text[at : at + 1] == ",":
            at = _next(text, at + 1)
        elif text[at : at + 1] != "]":
            line = text.count("\n", 0, at) + 1
            raise ValueError(f"{path}:{line}: not JSON: the list of rows does not go on or end here")
    if (end := _next(text, at + 1)) < len(text):
        line = text.count("\n", 0, end) + 1
        raise ValueError(f"{path}:{line}: not JSON: text after the end of the list of rows")


def _next(text: str, at: int) -> int:
    """Return the position of the next character that is not a blank of JSON, from ``at`` on."""
    while text[at : at + 1] and text[at] in " \t\r\n":
        at += 1
    return at


def _decoded(path: Path, number: int, line: str) -> Any:
    try:
        return json.loads(line, object_pairs_hook=_Row)
    except (ValueError, RecursionError) as error:
        raise _not_json(path, number, error) from None


def _not_json(path: Path, number: int, error: Exception) -> ValueError:
    reason = "nested too deeply" if isinstance(error, RecursionError) else getattr(error, "msg", error)
    return ValueError(f"{path}:{number}: not JSON: {reason}")


class _Row(dict[str, Any]):
    """A JSON object with its pairs as written: of a key that stands twice, a dict keeps one value."""

    def __init__(self, pairs: list[tuple[str, Any]]) -> None:
        super().__init__(pairs)
        self.pairs = pairs


def _values(row: Any, columns: Sequence[Column], place: str) -> tuple[str, ...]:
    """Return the columns of a JSON object as strings."""
    if not isinstance(row, _Row):
        raise ValueError(f"{place}: expected a JSON object, got {type(row).__name__}")
    names = [stripped(name) for name, _ in row.pairs]
    cells = [cell for _, cell in row.pairs]
    values = []
    for column in columns:
        assert isinstance(column, str)
        value = cells[_position(column, names, place)]
        if value is not None and not isinstance(value, str | int | float):
            raise ValueError(
                f"{place}: column {column!r} must hold text or a number, got {json.dumps(value)[:40]}"
            )
        if isinstance(value, str) and (half := _SURROGATE.search(value)):
            raise ValueError(
                f"{place}: column {column!r} holds \\u{ord(half[0]):04x}, half of a surrogate pair and no "
                "character; remove it, or write the whole pair"
            )
        values.append("" if value is None else value if isinstance(value, str) else json.dumps(value))
    return tuple(values)
