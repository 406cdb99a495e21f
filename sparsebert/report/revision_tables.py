"""Tables of two revisions of the code, from the "revision" records of ``benchmarks.revisions``."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from sparsebert.report.format import BUSY_NOTE, Record, machine_text, ratio_text, reached
from sparsebert.report.table import Cell, Table


def revision_tables(records: Iterable[Record]) -> list[Table]:
    """Return one table for each base revision, with the latest measurement of each case."""
    bases: dict[str, dict[str, Record]] = {}
    for row in records:
        if row["kind"] == "revision":
            bases.setdefault(row["base"], {})[row["case"]] = row
    return [_table(base, list(cases.values())) for base, cases in bases.items()]


def _table(base: str, rows: Sequence[Record]) -> Table:
    columns: dict[str, Cell] = {
        "case": lambda row: str(row["case"]),
        "speed-up": lambda row: ratio_text(row["ratio"], "?" if row["busy"] else ""),
        "p20, p80": lambda row: f"{row['ratio']['p20']:.2f}, {row['ratio']['p80']:.2f}",
        "base µs": lambda row: f"{row['base_us']['median']:,.1f}",
        "this µs": lambda row: f"{row['here_us']['median']:,.1f}",
        "as fast": lambda row: reached(row["passed"]),
    }
    last = rows[-1]
    revision = last["environment"]["revision"] or "of an installed package"
    notes = [
        f"{machine_text(last['environment'])}, 1 thread. Speed-up: time of the base over time of this "
        f"revision ({revision}), median of paired rounds; as fast: at least {last['must']:g}x."
    ]
    if any(row["busy"] for row in rows):
        notes.append(BUSY_NOTE)
    return Table.of(f"Speed against revision {base}", columns, rows, notes)
