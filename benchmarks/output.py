"""Output of a benchmark: the option ``--out``, records and tables."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Sequence
from pathlib import Path

from sparsebert import results
from sparsebert.report.table import Table


def add_out_option(parser: argparse.ArgumentParser) -> None:
    """Add the option ``--out``, a file of records."""
    parser.add_argument("--out", type=Path, help="append the records to this file")


def append(out: Path | None, rows: Sequence[results.Record]) -> None:
    """Append the records to ``out``, if it is set; its folder is created."""
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        results.append(out, rows)


def replace(out: Path, rows: Sequence[results.Record]) -> None:
    """Write the records to ``out`` in place of its present ones; its folder is created."""
    out.unlink(missing_ok=True)
    append(out, rows)


def show(tables: Iterable[Table]) -> None:
    """Print the tables in Markdown."""
    for table in tables:
        print(table.markdown(), end="\n\n")
