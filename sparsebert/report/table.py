"""A table of text, for the terminal (rich) and for documents (markdown)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Group

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
        """For a rich console of this width: transposed where it does not fit as it is and does so then."""
        from rich.console import Group
        from rich.table import Table as RichTable
        from rich.text import Text

        turned = self.transposed()
        shown = turned if turned.width < self.width and width < self.width else self
        table = RichTable()
        for index, column in enumerate(shown.columns):
            left = index == 0 or shown.prose
            table.add_column(Text(column), justify="left" if left else "right", overflow="fold")
        for row in shown.rows:
            table.add_row(*(Text(cell) for cell in row))
        # Around the table, not as its title and caption: these are squeezed into the table's width.
        return Group(Text(self.title, style="bold"), table, *(Text(note) for note in self.notes))

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

    @property
    def width(self) -> int:
        """Characters a row takes in a terminal, borders included."""
        longest = (max(map(len, column)) for column in zip(self.columns, *self.rows, strict=True))
        return 1 + sum(length + 3 for length in longest)


def _markdown_row(cells: Iterable[str]) -> str:
    """One line: bars and line ends of the cells' own would cut it."""
    return "| " + " | ".join(" ".join(cell.replace("|", "\\|").splitlines()) for cell in cells) + " |"
