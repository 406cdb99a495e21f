"""Tables of ``sparsebert optimize``: every form that was tried."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from sparsebert.report.format import BUSY_NOTE, MISSING, Record, machine_text, megabytes, workload_title
from sparsebert.report.table import Cell, Table


def optimize_tables(records: Iterable[Record]) -> list[Table]:
    """Return a table for each search."""
    groups: dict[str, dict[str, Record]] = {}
    for row in records:
        if row["kind"] == "optimize":
            search = (row["workload"], row["measure"], row["keep"], row["method"], row.get("fingerprints"))
            key = str(search)
            groups.setdefault(key, {})[row["form"]] = row
    return [_table(list(group.values())) for group in groups.values()]


def _table(rows: Sequence[Record]) -> Table:
    first = rows[0]
    columns: dict[str, Cell] = {
        "form": lambda row: f"{row['form']}{' *' if row['chosen'] else ''}",
        "sparsity": lambda row: f"{row['sparsity']:.1%}",
        "quality": lambda row: f"{row['quality']['keep']:.4f}",
        "holds": lambda row: "yes" if row["holds"] else "no",
        "verdict": lambda row: MISSING if row["verdict"] is None else f"{row['verdict']['keep']:.4f}",
        "ms": lambda row: f"{row['latency_ms']:.1f}{_doubt(row)}",
        "MB": lambda row: megabytes(row["model_bytes"]),
        "x dense fp32": lambda row: f"{row['speedup']:.2f}x{_doubt(row)}",
        "from sparsity": lambda row: f"{row['sparsity_gain']:.2f}x{_doubt(row)}",
    }
    if first["labels"]:
        gain = f"{first['measure']} above a constant guess, as a share of the dense model's"
        what, bounded = f"lower end of a 90 % interval of {gain}", "it"
    else:
        what, bounded = "mean cosine to the outputs of the dense model", "the lower end of its 90 % interval"
    notes = [
        f"{machine_text(first['environment'])}. * = chosen. Quality: {what}, on {first['judged']['search']} "
        f"texts of the search; {bounded} must be at least {first['keep']:g}. Verdict: the same on "
        f"{first['judged']['verdict']} texts that the search has not seen. All forms are fused; from "
        "sparsity: against the dense form in the same precision and packing."
    ]
    if any(row["busy"] for row in rows):
        notes.append(BUSY_NOTE)
    title = f"Search of the fastest form that keeps {first['keep']:g}: {workload_title(first['workload'])}"
    return Table.of(title, columns, rows, notes)


def _doubt(row: Record) -> str:
    return "?" if row["busy"] else ""
