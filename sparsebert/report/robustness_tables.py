"""Tables of ``sparsebert eval --perturb``: a ticket and the dense model on the same changed texts."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence

from sparsebert.report.format import MISSING, Record, mean_text, span_text
from sparsebert.report.table import Table

_NOTE = (
    "Loss: the metric on the texts as they are minus the metric on the changed ones. Other answers: share of "
    "examples that are answered differently than as they are."
)
_SHUFFLED = "A model that keeps its metric on shuffled words does not read their order."


def robustness_tables(records: Iterable[Record]) -> list[Table]:
    """Return a table for each task, model and seed of the changes, from "robustness" records."""
    groups: dict[tuple[str, ...], list[Record]] = {}
    for row in records:
        groups.setdefault((row["task"], row["model"], str(row["perturb_seed"])), []).append(row)
    return [_table(task, model, seed, rows) for (task, model, seed), rows in groups.items()]


def _table(task: str, model: str, seed: str, rows: Sequence[Record]) -> Table:
    metric = rows[0]["metric"]
    has_dense = any(row["dense"] for row in rows)
    sides = ("dense", "model") if has_dense else ("model",)
    columns = ["perturbation", "sparsity", "changed"]
    for side in sides:
        columns += [side, f"loss, {side}", f"other answers, {side}"]
    lines = []
    for sparsity in dict.fromkeys(row["sparsity"] for row in rows if not row["dense"]):
        of_model = [row for row in rows if not row["dense"] and row["sparsity"] == sparsity]
        by_side = {"dense": [row for row in rows if row["dense"]], "model": of_model}
        share = MISSING if sparsity is None else f"{sparsity:.1%}"
        clean: list[str] = []
        for side in sides:
            clean += [_mean([row["clean"][metric] for row in _once(by_side[side])]), MISSING, MISSING]
        lines.append(("none", share, MISSING, *clean))
        for name, severity in dict.fromkeys((row["perturbation"], row["severity"]) for row in of_model):
            here = {
                side: [row for row in each if (row["perturbation"], row["severity"]) == (name, severity)]
                for side, each in by_side.items()
            }
            degree = "" if severity is None else f" {severity:g}"
            cells = [cell for side in sides for cell in _cells(here[side], metric)]
            lines.append((f"{name}{degree}", share, f"{here['model'][0]['changed']:.1%}", *cells))
    notes = [_NOTE]
    if any(row["perturbation"] == "shuffle" for row in rows):
        notes.append(_SHUFFLED)
    seeds = {row["seed"] for row in rows}
    if len(seeds) > 1:
        notes.append(f"Mean and standard deviation (n - 1) of {span_text([len(seeds)], 'd')} seeds.")
    title = f"Robustness: {model} on {task}, {metric}, changes of seed {seed}"
    return Table(title, tuple(columns), tuple(lines), tuple(notes))


def _once(rows: Sequence[Record]) -> list[Record]:
    """Return one record of each seed; each holds the metrics on the texts as they are."""
    return list({row["seed"]: row for row in rows}.values())


def _cells(rows: Sequence[Record], metric: str) -> list[str]:
    if not rows:
        return [MISSING] * 3
    latest = _once(rows)
    flips = [row["other_answers"] for row in latest if row["other_answers"] is not None]
    return [
        _mean([row["metrics"][metric] for row in latest]),
        _mean([row["clean"][metric] - row["metrics"][metric] for row in latest]),
        f"{statistics.fmean(flips):.1%}" if flips else MISSING,
    ]


def _mean(values: Sequence[float]) -> str:
    if not values:
        return MISSING
    return mean_text(statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None)
