"""Healed models: lines about one, and the table of several."""

from __future__ import annotations

from collections.abc import Iterable
from operator import itemgetter

from sparsebert.report.fingerprint_notes import fingerprint_notes
from sparsebert.report.format import MISSING, Record
from sparsebert.report.table import Cell, Table

_COLUMNS: dict[str, Cell] = {
    "model": itemgetter("model"),
    "sparsity": lambda row: f"{row['sparsity']:.2%}",
    "compared": itemgetter("measure"),
    "cosine before": lambda row: f"{row['agreement_before']:.4f}",
    "cosine after": lambda row: f"{row['agreement_after']:.4f}",
    "loss before": lambda row: f"{row['loss_before']:.4f}",
    "loss after": lambda row: f"{row['loss_after']:.4f}",
    "steps": lambda row: str(row["steps"]),
    "tokens": lambda row: str(row["tokens"]),
    "seconds": lambda row: f"{row['seconds']:.0f}",
    "rate": lambda row: f"{row['learning_rate']:.2g}" if row["healed"] else MISSING,
}


def healing_tables(records: Iterable[Record]) -> list[Table]:
    """Return the table of healed models, from their "heal" records."""
    rows = [row for row in records if row["kind"] == "heal"]
    note = "cosine: mean over texts that neither trained nor chose, to the dense model's outputs"
    notes = [note, *fingerprint_notes(rows, lambda row: str(row["output"]), ("texts",))]
    return [Table.of("Healed models", _COLUMNS, rows, notes)] if rows else []


def healing_lines(record: Record) -> list[str]:
    """Return the result of a healing in lines.

    Args:
        record: A record of kind "heal".
    """
    texts = record["texts"]
    work = (
        f"{record['steps']} steps, {record['tokens']} tokens, {record['seconds']:.0f} s, learning rate "
        f"{record['learning_rate']:.2g}, products in {record['precision']}"
    )
    if not record["healed"]:
        return [work, "no state was better on the held-out texts: the weights are those of the start"]
    lines = [
        work,
        f"held-out loss {record['loss_before']:.4f} -> {record['loss_after']:.4f} ({texts['validation']} "
        f"texts), at step {record['best_step']}",
        f"cosine to the dense model's {record['measure']} {record['agreement_before']:.4f} -> "
        f"{record['agreement_after']:.4f} ({texts['judge']} other texts), {record['sparsity']:.2%} sparse",
    ]
    if record["agreement_after"] < record["agreement_before"]:
        lines.append(
            f"the cosine fell on these {texts['judge']} texts, which do not decide; on the "
            f"{texts['validation']} that do, the {record['measure']} came no farther from the dense model's"
        )
    return lines
