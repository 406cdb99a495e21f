"""Rows as the text of a CSV file, in which nothing of a record is taken for a formula."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable, Sequence

# What spreadsheets compute, and start programs for. Figures with a sign are none of it.
_FORMULA = re.compile(r"\s*[=@]|[\t\r]|[+-].*(?:[|!]|[A-Za-z]\()", re.DOTALL)


def csv_text(rows: Iterable[Sequence[object]]) -> str:
    """Return rows as CSV; before a text that a spreadsheet would compute stands an apostrophe."""
    target = io.StringIO()
    csv.writer(target, lineterminator="\n").writerows([_inert(cell) for cell in row] for row in rows)
    return target.getvalue()


def _inert(cell: object) -> object:
    return f"'{cell}" if isinstance(cell, str) and _FORMULA.match(cell) else cell
