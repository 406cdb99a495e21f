"""Tables of layers that meet requests of every length: memory, and the time of rounded token counts."""

from __future__ import annotations

from collections.abc import Iterable

from sparsebert.report.format import BUSY_NOTE, Record, machine_text
from sparsebert.report.table import Cell, Table

_MEMORY: dict[str, Cell] = {
    "format": lambda row: str(row["format"]),
    "token counts": lambda row: "exact" if row["exact"] else "rounded",
    "threads": lambda row: str(row["threads"]),
    "before MB": lambda row: f"{row['start_mb']:,}",
    "warm MB": lambda row: f"{row['warm_mb']:,}",
    "after MB": lambda row: f"{row['end_mb']:,}",
}
_TIME: dict[str, Cell] = {
    "shape": lambda row: "x".join(map(str, row["shape"])),
    "tokens": lambda row: str(row["tokens"]),
    "rounded us": lambda row: f"{row['rounded_us']:.0f}",
    "vs exact": lambda row: _speedup(row, "to_exact"),
    "vs F.linear": lambda row: _speedup(row, "to_eager"),
}


def request_tables(records: Iterable[Record]) -> list[Table]:
    """Return the latest memory of each format, and the latest time of each shape and token count."""
    memory: dict[tuple[object, ...], Record] = {}
    times: dict[tuple[object, ...], Record] = {}
    for row in records:
        if row["kind"] == "request_memory":
            memory[row["format"], row["exact"], row["threads"]] = row
        elif row["kind"] == "request_time":
            times[*row["shape"], row["tokens"]] = row
    tables = []
    if memory:
        tables.append(_memory_table(list(memory.values())))
    if times:
        tables.append(_time_table(list(times.values())))
    return tables


def _memory_table(rows: list[Record]) -> Table:
    notes = (
        f"{machine_text(rows[0]['environment'])}. Resident memory of a process with one 384x384 layer: "
        "before any request, after 1,000 of 1 to 600 tokens, and after 10,000 more (600 where counts are "
        "exact, as they were before they were rounded).",
    )
    return Table.of("Memory over requests of random lengths", _MEMORY, rows, notes)


def _time_table(rows: list[Record]) -> Table:
    notes = (
        f"{machine_text(rows[0]['environment'])}. One thread; median times and median speed-ups of paired "
        "rounds: a prepacked dense layer with rounded token counts against one with exact counts, and "
        "against torch's F.linear.",
        *([BUSY_NOTE] if any(row.get("busy") for row in rows) else []),
    )
    return Table.of("Time of dense layers with rounded token counts", _TIME, rows, notes)


def _speedup(row: Record, name: str) -> str:
    return f"{1 / row[name]:.2f}x{'?' if row.get('busy') else ''}"
