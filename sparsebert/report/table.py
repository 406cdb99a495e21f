"""A table of text, for the terminal (rich) and for documents (Markdown)."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from sparsebert.html_table import table_html
from sparsebert.report.csv_text import csv_text
from sparsebert.report.plain_text import markdown_text, printable

if TYPE_CHECKING:
    from rich.console import Group

# Least width to which the first column is folded.
_LEAST_FIRST = 24
# More columns than that are not read side by side on a page.
_MOST_COLUMNS = 14
# A figure that its table emphasises.
_EMPHASISED = re.compile(r"\*\*[\d.,]+\*\*")
# Returns a record's cell.
Cell = Callable[[dict[str, Any]], str]


@dataclass(frozen=True)
class Table:
    """A table with cells as text, in which control characters are replaced by escapes.

    Attributes:
        title: Title above the table.
        columns: Names of the columns.
        rows: Cells of each row.
        notes: Notes below the table, in Markdown.
        prose: Whether cells are text; otherwise all columns but the first are aligned right.
    """

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...] = ()
    prose: bool = False

    def __post_init__(self) -> None:
        """Escape control characters."""
        object.__setattr__(self, "title", printable(self.title))
        for name in ("columns", "notes"):
            object.__setattr__(self, name, tuple(map(printable, getattr(self, name))))
        object.__setattr__(self, "rows", tuple(tuple(map(printable, row)) for row in self.rows))

    @classmethod
    def of(
        cls,
        title: str,
        columns: Mapping[str, Cell],
        records: Iterable[dict[str, Any]],
        notes: Iterable[str] = (),
    ) -> Table:
        """Return a table with a row for each record.

        Args:
            title: Title above the table.
            columns: The function that makes a cell of a record, by column name.
            records: One for each row.
            notes: Notes below the table.
        """
        rows = tuple(tuple(cell(record) for cell in columns.values()) for record in records)
        return cls(title, tuple(columns), rows, tuple(notes))

    def markdown(self) -> str:
        """Return a Markdown table, with title and notes as paragraphs; a very wide one is transposed."""
        shown = self.upright()
        lines = [f"**{markdown_text(self.title)}**", ""] if self.title else []
        lines.append(_markdown_row(shown.columns))
        other = " --- " if self.prose else " ---: "
        lines.append("|" + "|".join([" --- "] + [other] * (len(shown.columns) - 1)) + "|")
        lines += map(_markdown_row, shown.rows)
        # Two spaces end a line in Markdown.
        lines += ["", *(f"{note}  " for note in self.notes)] if self.notes else []
        return "\n".join(lines)

    def csv(self) -> str:
        """Return columns and rows as CSV, without title and notes."""
        return csv_text([self.columns, *self.rows])

    def upright(self) -> Table:
        """Return the table; one that is too wide to be read on a page is transposed."""
        wide = not self.prose and len(self.columns) > max(_MOST_COLUMNS, len(self.rows) + 1)
        return self.transposed() if wide else self

    def _repr_html_(self) -> str:
        left = range(len(self.columns)) if self.prose else (0,)
        return table_html(self.title, self.columns, self.rows, self.notes, left=left)

    def rich(self, width: int) -> Group:
        """Return the table for a console of ``width`` characters.

        A table that is too wide is transposed and, if still too wide, split.
        """
        from rich.console import Group
        from rich.table import Table as RichTable
        from rich.text import Text

        tables = []
        for shown in self._fitting(width):
            table = RichTable()
            for index, column in enumerate(shown.columns):
                left = index == 0 or shown.prose
                table.add_column(Text(column), justify="left" if left else "right", overflow="fold")
            for row in shown.rows:
                table.add_row(*(Text(cell) for cell in row))
            tables.append(table)
        # Not as title and caption of the rich table, which wrap at the width of the table.
        return Group(Text(self.title, style="bold"), *tables, *(Text(note) for note in self.notes))

    def _fitting(self, width: int) -> list[Table]:
        first, *others = self._widths()
        if self.prose or 1 + min(first, _LEAST_FIRST) + sum(others) <= width:
            return [self]  # the first column may be folded
        turned = self.transposed()
        first, *others = turned._widths()
        pieces: list[list[int]] = [[]]
        for index, each in enumerate(others, 1):
            taken = 1 + first + sum(others[i - 1] for i in pieces[-1])
            if pieces[-1] and taken + each > width:
                pieces.append([])
            pieces[-1].append(index)
        return [turned._part((0, *piece)) for piece in pieces]

    def _part(self, columns: Sequence[int]) -> Table:
        """Return a table of these columns only."""
        names, *rows = (tuple(row[i] for i in columns) for row in (self.columns, *self.rows))
        return replace(self, columns=names, rows=tuple(rows))

    def transposed(self) -> Table:
        """Return the table with columns as rows."""
        columns, *rows = zip(self.columns, *self.rows, strict=True)
        return Table(self.title, columns, tuple(rows), self.notes, self.prose)

    def record(self) -> dict[str, Any]:
        """Return the fields of a "report" record, as plain JSON values."""
        return {
            "title": self.title,
            "columns": list(self.columns),
            "rows": [list(row) for row in self.rows],
            "notes": list(self.notes),
            "prose": self.prose,
        }

    @classmethod
    def of_record(cls, record: Mapping[str, Any]) -> Table:
        """Return the table of a ``record``."""
        rows = tuple(map(tuple, record["rows"]))
        return cls(record["title"], tuple(record["columns"]), rows, tuple(record["notes"]), record["prose"])

    def _widths(self) -> list[int]:
        """Return the width of each column in a terminal, including its left border."""
        return [3 + max(map(len, column)) for column in zip(self.columns, *self.rows, strict=True)]


def _markdown_row(cells: Iterable[str]) -> str:
    shown = (cell if _EMPHASISED.fullmatch(cell) else markdown_text(cell) for cell in cells)
    return f"| {' | '.join(shown)} |"
