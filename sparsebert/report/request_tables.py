"""Tables of layers that meet requests of every length: memory, and the time of rounded token counts."""

from __future__ import annotations

from collections.abc import Iterable

from sparsebert.report.format import BUSY_NOTE, Record, machine_text
from sparsebert.report.table import Table

_MEMORY = ("format", "token counts", "threads", "before MB", "warm MB", "after MB")
_TIME = ("shape", "tokens", "rounded us", "vs exact", "vs F.linear")


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
    cells = tuple(
        (
            row["format"],
            "exact" if row["exact"] else "rounded",
            str(row["threads"]),
            f"{row['start_mb']:,}",
            f"{row['warm_mb']:,}",
            f"{row['end_mb']:,}",
        )
        for row in rows
    )
    notes = (
        f"{machine_text(rows[0]['environment'])}. Resident memory of a process with one 384x384 layer: "
        "before any request, after 1,000 of 1 to 600 tokens, and after 10,000 more (600 where counts are "
        "exact, as they were before they were rounded).",
    )
    return Table("Memory over requests of random lengths", _MEMORY, cells, notes)


def _time_table(rows: list[Record]) -> Table:
    cells = tuple(
        (
            "x".join(map(str, row["shape"])),
            str(row["tokens"]),
            f"{row['rounded_us']:.0f}",
            f"{1 / row['to_exact']:.2f}x{'?' if row.get('busy') else ''}",
            f"{1 / row['to_eager']:.2f}x{'?' if row.get('busy') else ''}",
        )
        for row in rows
    )
    notes = (
        f"{machine_text(rows[0]['environment'])}. One thread; median times and median speed-ups of paired "
        "rounds: a prepacked dense layer with rounded token counts against one with exact counts, and "
        "against torch's F.linear.",
        *([BUSY_NOTE] if any(row.get("busy") for row in rows) else []),
    )
    return Table("Time of dense layers with rounded token counts", _TIME, cells, notes)
