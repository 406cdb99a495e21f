"""Tables of ``sparsebert eval --perturb``: a ticket and the dense model on the same changed texts."""

from __future__ import annotations

import statistics
from collections.abc import Collection, Iterable, Sequence

from sparsebert.report.fingerprint_notes import fingerprint_notes
from sparsebert.report.format import MISSING, Record, label_map_text, mean_text, span_text
from sparsebert.report.table import Table

_NOTE = (
    "Loss: the metric on the texts as they are minus the metric on the changed ones. Other answers: share of "
    "examples that are answered differently than as they are."
)
_SHUFFLED = "A model that keeps its metric on shuffled words does not read their order."
_REPLACED = (
    "Evaluations of the same name, seed and sparsity have other metrics on the texts as they are: the last "
    "one is shown."
)
# What tells the evaluations of one model apart; records of earlier versions have the first only.
_FORM = ("sparsity", "masks_sha256", "tolerance")


def robustness_tables(records: Iterable[Record]) -> list[Table]:
    """Return a table for each task, model, label map and seed of the changes, from "robustness" records."""
    groups: dict[tuple[str, ...], list[Record]] = {}
    for row in records:
        key = row["task"], row["model"], str(row["perturb_seed"]), label_map_text(row)
        groups.setdefault(key, []).append(row)
    return [_table(task, model, seed, rows) for (task, model, seed, _), rows in groups.items()]


def _table(task: str, model: str, seed: str, rows: Sequence[Record]) -> Table:
    metric = rows[0]["metric"]
    dense = [row for row in rows if row["dense"]]
    forms: dict[tuple[object, ...], list[Record]] = {}
    for row in rows:
        if not row["dense"]:
            forms.setdefault(tuple(row.get(name) for name in _FORM), []).append(row)
    sides = ("dense", "model") if dense else ("model",)
    shown = ["sparsity", *_columns_that_tell_apart(forms)]
    columns = ["perturbation", *("ticket" if name == "masks_sha256" else name for name in shown), "changed"]
    for side in sides:
        columns += [side, f"loss, {side}", f"other answers, {side}"]
    lines = []
    for of_model in forms.values():
        by_side = {"dense": dense, "model": of_model}
        form = [_form_text(name, of_model[0].get(name)) for name in shown]
        clean: list[str] = []
        for side in sides:
            clean += [_mean([row["clean"][metric] for row in _once(by_side[side])]), MISSING, MISSING]
        lines.append(("none", *form, MISSING, *clean))
        for name, severity in dict.fromkeys((row["perturbation"], row["severity"]) for row in of_model):
            here = {
                side: [row for row in each if (row["perturbation"], row["severity"]) == (name, severity)]
                for side, each in by_side.items()
            }
            degree = "" if severity is None else f" {severity:g}"
            cells = [cell for side in sides for cell in _cells(here[side], metric)]
            lines.append((f"{name}{degree}", *form, f"{here['model'][0]['changed']:.1%}", *cells))
    notes = [_NOTE]
    if any(row["perturbation"] == "shuffle" for row in rows):
        notes.append(_SHUFFLED)
    # A dense model has seeds of its own, and may be one for all.
    seeds = [len(_once(each)) for each in (dense, *forms.values())]
    if max(seeds) > 1:
        counts = span_text([count for count in seeds if count > 1], "d")
        notes.append(f"Mean and standard deviation (n - 1) of {counts} seeds.")
    if any(map(_differ, (dense, *forms.values()))):
        notes.append(_REPLACED)
    notes += fingerprint_notes(rows, lambda row: "dense" if row["dense"] else "model", ("validation",))
    if label_map := label_map_text(rows[0]):
        notes.append(f"Labels of the data as outputs of the model: {label_map}.")
    title = f"Robustness: {model} on {task}, {metric}, changes of seed {seed}"
    return Table(title, tuple(columns), tuple(lines), tuple(notes))


def _columns_that_tell_apart(forms: Collection[tuple[object, ...]]) -> list[str]:
    """Return the fields beside the sparsity without which two evaluations would look the same."""
    return [
        name
        for at, name in enumerate(_FORM)
        if at and len({form[:at] + form[at + 1 :] for form in forms}) < len(forms)
    ]


def _form_text(name: str, value: object) -> str:
    if value is None:
        return MISSING
    return f"{value:.1%}" if name == "sparsity" else str(value)[:8]


def _differ(rows: Sequence[Record]) -> bool:
    """Whether a seed was evaluated with several results on the texts as they are."""
    return len({(row["seed"], *row["clean"].values()) for row in rows}) > len(_once(rows))


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
