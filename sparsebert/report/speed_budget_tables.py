"""The table of budgets for one speed: milliseconds against weights, one granularity against several."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from statistics import mean

from sparsebert.report.format import Record, machine_text
from sparsebert.report.table import Cell, Table

_CASE = ("method", "tolerance", "speedup", "budget", "granularity")
_NOTE = (
    "one thread, 8 sentences a batch; speeds against the fastest dense form in the same precision. Cost "
    "model: predicted without timings; predicted: with random masks. Cosine and AUC as for one-shot pruning"
)


def speed_budget_tables(records: Iterable[Record]) -> list[Table]:
    """Return the table of ``benchmarks.speed_budgets``; sets of texts share a row."""
    cases: dict[tuple[object, ...], list[Record]] = defaultdict(list)
    for row in records:
        if row["kind"] == "speed_budget":
            cases[tuple(row[name] for name in _CASE)].append(row)
    if not cases:
        return []
    rows = [{"rows": cases[case]} for case in sorted(cases, key=str)]
    notes = [_NOTE, machine_text(rows[0]["rows"][0]["environment"])]
    return [Table.of("MiniLM pruned for a speed", _COLUMNS, rows, [note for note in notes if note])]


def _mean(name: str, format: str) -> Cell:
    return lambda group: f"{mean(row[name] for row in group['rows']):{format}}"


def _first(name: str) -> Cell:
    return lambda group: str(group["rows"][0][name])


_COLUMNS: dict[str, Cell] = {
    "method": _first("method"),
    "precision": _first("tolerance"),
    "asked": lambda group: f"{group['rows'][0]['speedup']:g}x",
    "budget": _first("budget"),
    "granularity": _first("granularity"),
    "sparsity": _mean("sparsity", ".1%"),
    "dense matrices": _mean("dense_matrices", ".0f"),
    "cost model": lambda group: f"{mean(row['modelled_speedup'] for row in group['rows']):.2f}x",
    "predicted": lambda group: f"{mean(row['predicted_speedup'] for row in group['rows']):.2f}x",
    "measured": lambda group: f"{mean(row['measured_speedup'] for row in group['rows']):.2f}x",
    "cosine": _mean("cosine", ".3f"),
    "AUC": _mean("auc", ".3f"),
    "sets": lambda group: str(len(group["rows"])),
}
