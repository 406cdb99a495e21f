"""Tables of training runs: their rounds, what runs that differ in their seeds say together, and evaluations.

Records of a run's log have no ``run`` of their own; `sparsebert report` adds the folder that they come from,
without its seed, so that runs of one method with other settings are kept apart.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from sparsebert.metrics import summarise
from sparsebert.report.table import Table
from sparsebert.report.wording import (
    MISSING,
    Record,
    granularity_text,
    mean_and_verdict,
    mean_text,
    span_text,
    versions_text,
)

SEEDS_NOTE = "Mean and standard deviation (n - 1) over the seeds."
VERDICT_NOTE = (
    "Verdict: strict is at least the dense mean, winning at least the dense mean less one deviation of it."
)
# What runs that are summarised together have in common, beside the round.
_SETTINGS = (
    "run", "method", "granularity", "block_size", "scope", "source", "rewind", "head", "steps", "max_length",
    "round", "rounds",
)  # fmt: skip


def run_tables(records: Iterable[Record]) -> list[Table]:
    """For each task and model the rounds of its runs, then each round over its seeds.

    Rounds over seeds are "seeds" records where a command made them; else they are made of the rounds,
    judged by the dense round that the runs began with, or by the dense runs among the records.
    """
    tables = []
    for (task, model), group in _groups(records, ("round", "seeds"), "task", "model").items():
        rounds = [row for row in group if row["kind"] == "round"]
        given = [row for row in group if row["kind"] == "seeds"]
        if rounds:
            tables.append(_round_table(f"Rounds: {model} on {task}", rounds))
        if judged := _without_repeats(given, _over_seeds(rounds)):
            tables.append(_summary_table(f"Over seeds: {model} on {task}", judged, _ROUND_COLUMNS))
    return tables


def evaluation_tables(records: Iterable[Record]) -> list[Table]:
    """What `sparsebert eval` found on each task: model by model, then over seeds."""
    tables = []
    for (task,), group in _groups(records, ("eval", "eval_seeds"), "task").items():
        single = [row for row in group if row["kind"] == "eval"]
        judged = [row for row in group if row["kind"] == "eval_seeds"]
        if single:
            tables.append(_evaluation_table(f"Evaluated on {task}", single))
        if judged:
            model = (("model", lambda row: str(row["model"])),)
            tables.append(_summary_table(f"Evaluated on {task}, over seeds", judged, model))
    return tables


def matrix_tables(records: Iterable[Record]) -> list[Table]:
    """Chen's matrix for each model, from "transfer" records: tickets of some tasks, trained on others."""
    tables = []
    for (model,), cells in _groups(records, ("transfer",), "model").items():
        tasks = {cell["task"]: cell["metric"] for cell in cells}
        sources: dict[str, dict[str, Record]] = {}
        for cell in cells:
            sources.setdefault(cell["source"], {})[cell["task"]] = cell
        rows = tuple(
            (
                name,
                f"{max(cell['sparsity'] for cell in row.values()):.1%}",
                *(mean_and_verdict(row[task]) if task in row else MISSING for task in tasks),
            )
            for name, row in sources.items()
        )
        columns = ("ticket of", "sparsity", *(f"{task} ({metric})" for task, metric in tasks.items()))
        counts = [len(cell["seeds"]) for cell in cells]
        several = f"Mean and standard deviation (n - 1) of {span_text(counts, 'd')} seeds."
        notes = (several, VERDICT_NOTE) if max(counts) > 1 else ()
        tables.append(Table(f"Tickets of {model} on other tasks", columns, rows, notes))
    return tables


def _groups(
    records: Iterable[Record], kinds: Sequence[str], *fields: str
) -> dict[tuple[str, ...], list[Record]]:
    """Records of these kinds by what they have in these fields."""
    groups: dict[tuple[str, ...], list[Record]] = {}
    for row in records:
        if row["kind"] in kinds:
            groups.setdefault(tuple(str(row[field]) for field in fields), []).append(row)
    return groups


def _round_table(title: str, rounds: Sequence[Record]) -> Table:
    constant, columns, whose = _whose(rounds)
    names = list(dict.fromkeys(name for row in rounds for name in row["metrics"]))
    rows = tuple(
        (
            *whose(row),
            str(row["round"]),
            f"{row['sparsity']:.1%}",
            str(row["seed"]),
            *(_share(row["metrics"].get(name)) for name in names),
            _share(row["loss"]),
            f"{sum(row['seconds'].values()) / 60:.1f}",
        )
        for row in rounds
    )
    steps = span_text((row["steps"] for row in rounds), "d")
    note = (
        f"{steps} steps a round; loss: of training, as logged last. {versions_text(rounds[-1]['versions'])}."
    )
    columns = (*columns, "round", "sparsity", "seed", *names, "loss", "minutes")
    notes = (note, *filter(None, map(_search_text, rounds)))
    return Table(", ".join([title, *constant]), columns, rows, notes)


def _whose(
    rows: Sequence[Record],
) -> tuple[list[str], tuple[str, ...], Callable[[Record], tuple[str, ...]]]:
    """What tells runs apart: what they have in common, the columns of what they do not, and their cells."""
    cells: dict[str, Callable[[Record], str]] = {
        "run": lambda row: row.get("run") or MISSING,
        "method": lambda row: str(row["method"]),
        "pruned": lambda row: granularity_text(row) if row["sparsity"] and "granularity" in row else MISSING,
    }
    constant, varying = [], {}
    for name, cell in cells.items():
        values = dict.fromkeys(map(cell, rows))
        # Dense rounds have no granularity; that is no other one.
        told = [value for value in values if value != MISSING]
        if len(values if name == "run" else told) > 1:
            varying[name] = cell
        else:
            constant += told
    return constant, tuple(varying), lambda row: tuple(cell(row) for cell in varying.values())


def _search_text(row: Record) -> str:
    """How a search or a choice went that a ticket came from; nothing of a round without one."""
    search = row.get("search")
    if not search:
        return ""
    if isinstance(search, list):
        whole = search[0]["metric"]
        found = f"{len(search) - 1} smaller tickets tried; the whole model's metric there was {whole:.4f}"
    elif "drawn_at" in search:
        unsettled = "" if search["settled"] else ", though its mask had not settled"
        found = (
            f"ticket drawn after {search['drawn_at']} of {search['steps']} steps, "
            f"{search['saved']:.0%} of the search saved{unsettled}"
        )
    else:
        found = f"masks of step {search['step']} chosen, by {search['metric']:.4f} on the validation data"
    return f"seed {row['seed']}: {found}"


def _over_seeds(rounds: Sequence[Record]) -> Iterator[Record]:
    """Fields of a "seeds" record for each round that runs of several seeds have done."""
    groups: dict[tuple[str, ...], dict[int, Record]] = {}
    for row in rounds:
        # Runs without a folder may differ in what was asked of them; those of one folder do not, and find
        # a sparsity each where their method decides it.
        share = "" if row.get("run") else f"{row['sparsity']:.3f}"
        groups.setdefault((*(str(row.get(name)) for name in _SETTINGS), share), {})[row["seed"]] = row
    for group in groups.values():
        if len(group) > 1:
            rows = list(group.values())
            metric = next(iter(rows[0]["metrics"]))  # the task's primary one comes first
            sparsity = statistics.fmean(row["sparsity"] for row in rows)
            judged = summarise(metric, rows, _judges(rows[0], rounds))
            yield {**rows[0], "kind": "seeds", "sparsity": sparsity, **judged}


def _judges(row: Record, rounds: Sequence[Record]) -> list[Record]:
    """The dense rounds to judge a round by; none for one that is dense."""
    if row["source"] == "all":
        return []
    alike = [
        each
        for each in rounds
        if each["source"] == "all"
        and (each["steps"], each.get("max_length")) == (row["steps"], row.get("max_length"))
    ]
    own = [each for each in alike if (each.get("run"), each["method"]) == (row.get("run"), row["method"])]
    found = own or [each for each in alike if each["method"] == "dense"]
    return list({each["seed"]: each for each in found}.values())


def _without_repeats(given: Iterable[Record], made: Iterable[Record]) -> list[Record]:
    """The latest of each summary that a command made, with what its rounds tell, and others made here."""

    def key(row: Record) -> tuple[Any, ...]:
        return row["method"], row["round"], frozenset(zip(row["seeds"], row["values"], strict=True))

    latest = {key(row): row for row in given}
    others = []
    for row in made:
        if key(row) in latest:
            latest[key(row)] = row | latest[key(row)]
        else:
            others.append(row)
    return [*latest.values(), *others]


_Columns = Sequence[tuple[str, Callable[[Record], str]]]
_ROUND_COLUMNS: _Columns = (
    ("round", lambda row: str(row["round"])),
    ("sparsity", lambda row: f"{row['sparsity']:.1%}"),
)


def _summary_table(title: str, rows: Sequence[Record], columns: _Columns) -> Table:
    """Fields of :func:`sparsebert.metrics.summarise` in cells, after these columns."""
    constant, varying, whose = _whose(rows) if "method" in rows[0] else ([], (), lambda row: ())
    metrics = list(dict.fromkeys(row["metric"] for row in rows))
    judged = any("verdict" in row for row in rows)
    body = tuple(
        (
            *whose(row),
            *(cell(row) for _, cell in columns),
            *([row["metric"]] if len(metrics) > 1 else []),
            str(len(row["seeds"])),
            f"{row['mean']:.4f}",
            _share(row["std"]),
            *(
                [mean_text(row["dense_mean"], row["dense_std"]) if "verdict" in row else MISSING]
                if judged
                else []
            ),
            *([row.get("verdict", MISSING)] if judged else []),
        )
        for row in rows
    )
    header = (
        *varying,
        *(name for name, _ in columns),
        *(["metric"] if len(metrics) > 1 else []),
        "seeds",
        "mean",
        "std",
        *(["dense", "verdict"] if judged else []),
    )
    told = metrics if len(metrics) == 1 else []
    notes = (SEEDS_NOTE, *([VERDICT_NOTE] if judged else []))
    return Table(", ".join([title, *told, *constant]), header, body, notes)


def _evaluation_table(title: str, rows: Sequence[Record]) -> Table:
    names = list(dict.fromkeys(name for row in rows for name in row["metrics"]))
    compacted = [row for row in rows if "compaction" in row]
    masked = list(dict.fromkeys(name for row in compacted for name in row["masked_metrics"]))
    body = tuple(
        (
            str(row["model"]),
            MISSING if row["seed"] is None else str(row["seed"]),
            MISSING if row["sparsity"] is None else f"{row['sparsity']:.1%}",
            *(_share(row["metrics"].get(name)) for name in names),
            *(_compaction_cells(row, masked) if compacted else ()),
        )
        for row in rows
    )
    columns = ("model", "seed", "sparsity", *names)
    notes: tuple[str, ...] = ()
    if compacted:
        columns += ("rows dropped below", "size", "as stored", *(f"{name}, masked" for name in masked))
        columns += ("other answers",)
        notes = (
            "Size: encoder weights in the rows and columns that are left, of those configured; masked: of "
            "the model before anything was taken out; other answers: over the first validation batches.",
        )
    return Table(title, columns, body, notes)


def _compaction_cells(row: Record, masked: Sequence[str]) -> tuple[str, ...]:
    if "compaction" not in row:
        return (MISSING,) * (len(masked) + 4)
    compaction, weights = row["compaction"], row["compaction"]["weights"]
    least = compaction["min_row_weights"]
    return (
        f"{least} weights" if least else "none, exact",
        *(f"{weights[name] / weights['configured']:.2%}" for name in ("exact", "stored")),
        *(_share(row["masked_metrics"].get(name)) for name in masked),
        f"{compaction['output_change']['changed']:.2%}",
    )


def _share(value: float | None) -> str:
    return MISSING if value is None else f"{value:.4f}"
