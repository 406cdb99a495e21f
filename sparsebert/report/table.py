"""A table of text, for the terminal (rich) and for documents (markdown)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Group

# Narrower than this a first column is not folded.
_LEAST_FIRST = 24
# A record's cell in a column.
Cell = Callable[[dict[str, Any]], str]


@dataclass(frozen=True)
class Table:
    """Cells as text, notes below. All columns but the first are aligned right, unless they are ``prose``."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...] = ()
    prose: bool = False

    @classmethod
    def of(
        cls,
        title: str,
        columns: Mapping[str, Cell],
        records: Iterable[dict[str, Any]],
        notes: Iterable[str] = (),
    ) -> Table:
        """A row for each record."""
        rows = tuple(tuple(cell(record) for cell in columns.values()) for record in records)
        return cls(title, tuple(columns), rows, tuple(notes))

    def markdown(self) -> str:
        """GitHub's table syntax; title and notes as paragraphs around it."""
        lines = [f"**{self.title}**", ""] if self.title else []
        lines.append(_markdown_row(self.columns))
        other = " --- " if self.prose else " ---: "
        lines.append("|" + "|".join([" --- "] + [other] * (len(self.columns) - 1)) + "|")
        lines += map(_markdown_row, self.rows)
        # Two spaces end a line in markdown.
        lines += ["", *(f"{note}  " for note in self.notes)] if self.notes else []
        return "\n".join(lines)

    def rich(self, width: int) -> Group:
        """For a rich console of this width: transposed where it does not fit as it is, and in pieces where it
        does not fit then."""
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
        # Around the table, not as its title and caption: these are squeezed into the table's width.
        return Group(Text(self.title, style="bold"), *tables, *(Text(note) for note in self.notes))

    def _fitting(self, width: int) -> list[Table]:
        first, *others = self._widths()
        if self.prose or 1 + min(first, _LEAST_FIRST) + sum(others) <= width:
            return [self]  # as it is, the first column in several lines if need be
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
        """These columns alone."""
        names, *rows = (tuple(row[i] for i in columns) for row in (self.columns, *self.rows))
        return replace(self, columns=names, rows=tuple(rows))

    def transposed(self) -> Table:
        """Columns as rows."""
        columns, *rows = zip(self.columns, *self.rows, strict=True)
        return Table(self.title, columns, tuple(rows), self.notes, self.prose)

    def record(self) -> dict[str, Any]:
        """Plain JSON values: the fields of a "report" record."""
        return {
            "title": self.title,
            "columns": list(self.columns),
            "rows": [list(row) for row in self.rows],
            "notes": list(self.notes),
            "prose": self.prose,
        }

    @classmethod
    def of_record(cls, record: Mapping[str, Any]) -> Table:
        """The table that :meth:`record` gave."""
        rows = tuple(map(tuple, record["rows"]))
        return cls(record["title"], tuple(record["columns"]), rows, tuple(record["notes"]), record["prose"])

    def _widths(self) -> list[int]:
        """Characters that each column takes in a terminal, with the border on its left."""
        return [3 + max(map(len, column)) for column in zip(self.columns, *self.rows, strict=True)]


def _markdown_row(cells: Iterable[str]) -> str:
    """One line: bars and line ends of the cells' own would cut it."""
    return "| " + " | ".join(" ".join(cell.replace("|", "\\|").splitlines()) for cell in cells) + " |"
