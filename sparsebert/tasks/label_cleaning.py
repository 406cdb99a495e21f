"""Labels as people write them: missing ones, spellings of one class, and the classes of a task."""

from __future__ import annotations

import math
import re
import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from sparsebert.tasks.examples import TaskData, label_counts
from sparsebert.tasks.tables import NUMBER, Column, read_columns, shortened, stripped

# Spellings of a missing value by pandas, SQL and spreadsheets. "None" and "NA" may be classes.
_MISSING = {"", "nan", "<na>", "null", "\\n", "#n/a"}
# Decimal places to which two numbers must differ to be two classes.
_PLACES = 9


@dataclass(frozen=True)
class LabelledRow:
    """A row of a table: its line, its texts and its label, without blanks around the label."""

    line: int
    texts: tuple[str, ...]
    label: str


@dataclass(frozen=True)
class LabelledTable:
    """The rows of a file that have texts and a label, and the number of rows that were dropped.

    Attributes:
        path: The file.
        rows: Its rows.
        dropped: Rows without a text or a label.
    """

    path: Path
    rows: tuple[LabelledRow, ...]
    dropped: int = 0

    def labels(self) -> dict[str, tuple[int, int]]:
        """Return the number of rows and the line of the first row of each label."""
        first = {row.label: row.line for row in reversed(self.rows)}
        return {
            label: (count, first[label]) for label, count in Counter(row.label for row in self.rows).items()
        }


def read_table(
    path: Path,
    columns: Sequence[Column],
    label: Column,
    *,
    classes: Sequence[str] = (),
    drop_empty: bool = False,
) -> LabelledTable:
    """Read a table of texts and labels.

    Args:
        path: The file, in a format of :func:`sparsebert.tasks.tables.read_columns`.
        columns: Text columns.
        label: Label column.
        classes: Labels that are classes even if they look like a missing value, such as "null".
        drop_empty: Drop rows without a text or a label instead of refusing them.

    Raises:
        ValueError: With file and line, for a row without a text or a label, and as ``read_columns``.
        FileNotFoundError: For a missing file.
    """
    rows: list[LabelledRow] = []
    dropped = 0
    for line, values in read_columns(path, [*columns, label]):
        row = LabelledRow(line, values[:-1], stripped(values[-1]))
        missing = [str(name) for name, text in zip(columns, row.texts, strict=True) if not stripped(text)]
        if row.label not in classes and row.label.casefold() in _MISSING:
            missing.append(f"{label} ({row.label!r})" if row.label else str(label))
        if not missing:
            rows.append(row)
        elif drop_empty:
            dropped += 1
        else:
            raise ValueError(
                f"{path}:{line}: nothing in column {' and '.join(missing)}; complete the row, or drop such "
                "rows (--drop-empty)"
            )
    return LabelledTable(path, tuple(rows), dropped)


def require_distinct(tables: Sequence[LabelledTable], classes: Sequence[str] = ()) -> None:
    """Raise ValueError if two labels of these tables are spellings of one class: "yes" and "Yes", 1 and 1.0.

    Args:
        tables: The tables of a task.
        classes: Labels that the user lists, and which are therefore distinct.
    """
    spellings: dict[str, dict[str, list[str]]] = {}
    for label in classes:
        spellings.setdefault(_spelling(label), {}).setdefault(label, [])
    for table in tables:
        for label, (count, line) in table.labels().items():
            place = f"{_rows(count)} of {table.path}, first in line {line}"
            spellings.setdefault(_spelling(label), {}).setdefault(label, []).append(place)
    for written in spellings.values():
        if len(written) > 1 and not written.keys() <= set(classes):
            each = " and ".join(
                f"{label!r} ({'; '.join(places) or 'expected'})" for label, places in written.items()
            )
            if all(written.values()):
                remedy = "write them alike, or list all classes if they are different (--labels)"
            else:
                remedy = "write it as expected, or name the label that is meant (--label-map)"
            raise ValueError(f"labels {each} look like one class; {remedy}")


def classes_of(table: LabelledTable) -> tuple[str, ...]:
    """Return the labels of a table: in numerical order if all are numbers, else in alphabetical order."""
    values = {label: _number(label) for label in table.labels()}
    if any(value is None for value in values.values()):
        return tuple(sorted(values))
    return tuple(sorted(values, key=lambda label: (values[label], label)))


def class_counts(data: TaskData) -> list[str]:
    """Return a line for each split of a classification, of texts or words: its examples of every class.

    A split that is not loaded, and a task of another kind, have no line.
    """
    if not data.task.has_classes:
        return []
    what = "words" if data.task.kind == "tokens" else "examples"
    lines = []
    for split, examples in {"train": data.train, **data.validation}.items():
        if counts := label_counts(examples):
            each = shortened(f"{label} {counts[index]}" for index, label in enumerate(data.task.labels))
            lines.append(f"{data.task.name}, {split}: {sum(counts.values())} {what}: {each}")
    return lines


def dropped_rows(tables: Mapping[str, LabelledTable]) -> dict[str, int]:
    """Return the rows that were dropped from the table of each split, where there are any."""
    return {split: table.dropped for split, table in tables.items() if table.dropped}


def _spelling(label: str) -> str:
    """Return a text that is equal for spellings of one class.

    They differ in case, quotes, a final mark, blanks, ``-`` and ``_``, Unicode forms, or are one number.
    """
    text = unicodedata.normalize("NFKC", label)
    text = "".join(each for each in text if unicodedata.category(each) not in ("Cc", "Cf", "Zl", "Zp"))
    text = text.strip().strip("'\"`\u2018\u2019\u201c\u201d").rstrip(".,;:").strip()
    if (value := _number(text)) is not None:
        return f"{round(value, _PLACES) + 0.0!r}"
    return re.sub(r"[\s_-]+", " ", text.casefold()).strip() or label


def _number(label: str) -> float | None:
    """Return the value of a label that is a number, else None."""
    value = float(label) if NUMBER.fullmatch(label) else math.inf
    return value if math.isfinite(value) else None


def _rows(count: int) -> str:
    return "1 row" if count == 1 else f"{count} rows"
