"""Tables of training runs: rounds, summaries over seeds, and evaluations.

Records of a run's log have no field ``run``; ``sparsebert report`` adds the folder of the log, without its
seed, which keeps runs of a method with different settings apart.
"""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from sparsebert.report.fingerprint_notes import fingerprint_notes
from sparsebert.report.format import (
    MISSING,
    Record,
    granularity_text,
    label_map_text,
    mean_and_verdict,
    mean_text,
    span_text,
    start_text,
    verdict_notes,
    versions_text,
)
from sparsebert.report.start_tables import start_tables
from sparsebert.report.table import Cell, Table
from sparsebert.tasks.verdict import judged_again, summarise

# Fingerprints that runs share if they are to be compared.
_READ_BY_RUNS = ("train", "validation", "model", "tokenizer")
SEEDS_NOTE = "Mean and standard deviation (n - 1) over the seeds."
VERDICT_NOTE = (
    "Verdict: strict is at least the dense mean, winning at least the dense mean minus one dense deviation; "
    "undecided if the dense mean is too close to chance."
)
# Fields about how examples are read, and then all fields that are equal in runs that are summarised together.
_TEXT_FORMAT = (
    "max_length", "doc_stride", "max_context", "null_score_diff_threshold", "n_best_size",
    "max_answer_length",
)  # fmt: skip
_SETTINGS = (
    "run", "method", "start_ticket", "granularity", "block_size", "round_to", "scope", "source", "rewind",
    "head", "steps", *_TEXT_FORMAT, "round", "rounds",
)  # fmt: skip


def run_tables(records: Iterable[Record]) -> list[Table]:
    """Return for each task and model a table of rounds and a table of summaries over seeds.

    Between them is a table of what start tickets save, if there are any.
    Summaries come from "seeds" records if a command wrote them. Otherwise they are computed from the rounds
    and compared with the dense round at the start of the runs, or with the dense runs among the records.
    """
    tables = []
    for (task, model), group in _groups(records, "task", "model").items():
        rounds = [row for row in group if row["kind"] == "round"]
        written = [row for row in group if row["kind"] == "seeds"]
        if rounds:
            tables.append(_round_table(f"Rounds: {model} on {task}", rounds))
        tables += start_tables(rounds)
        if judged := _without_repeats(written, _over_seeds(rounds)):
            round_: dict[str, Cell] = {"round": lambda row: str(row["round"]), "sparsity": _sparsity}
            tables.append(_summary_table(f"Over seeds: {model} on {task}", judged, round_))
    return tables


def evaluation_tables(records: Iterable[Record]) -> list[Table]:
    """Return the tables of ``sparsebert eval`` for each task: by model, then over seeds."""
    tables = []
    for (task,), group in _groups(records, "task").items():
        single = [row for row in group if row["kind"] == "eval"]
        judged = [row for row in group if row["kind"] == "eval_seeds"]
        if single:
            tables.append(_evaluation_table(f"Evaluated on {task}", single))
        if judged:
            model: dict[str, Cell] = {"model": lambda row: str(row["model"])}
            tables.append(_summary_table(f"Evaluated on {task}, over seeds", judged, model))
    return tables


def matrix_tables(records: Iterable[Record]) -> list[Table]:
    """Return the transfer matrix of each model (Chen et al. 2020), from "transfer" records."""
    tables = []
    for (model,), cells in _groups(records, "model").items():
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
        notes = [*((several, VERDICT_NOTE) if max(counts) > 1 else ()), *verdict_notes(cells)]
        for task in tasks:
            of_task = [cell for cell in cells if cell["task"] == task]
            different = fingerprint_notes(of_task, lambda cell: str(cell["source"]), _READ_BY_RUNS)
            notes += [f"{task}: {note}" for note in different]
        tables.append(Table(f"Tickets of {model} on other tasks", columns, rows, tuple(notes)))
    return tables


def _groups(records: Iterable[Record], *fields: str) -> dict[tuple[str, ...], list[Record]]:
    """Group records by these fields."""
    groups: dict[tuple[str, ...], list[Record]] = {}
    for row in records:
        groups.setdefault(tuple(str(row[field]) for field in fields), []).append(row)
    return groups


def _round_table(title: str, rounds: Sequence[Record]) -> Table:
    common, apart = told_apart(rounds)
    columns = {
        **apart,
        "round": lambda row: str(row["round"]),
        "sparsity": _sparsity,
        "seed": lambda row: str(row["seed"]),
        **_metrics(rounds, "metrics"),
        "loss": lambda row: _share(row["loss"]),
        "minutes": lambda row: f"{sum(row['seconds'].values()) / 60:.1f}",
    }
    steps = span_text((row["steps"] for row in rounds), "d")
    versions = versions_text(rounds[-1]["versions"])
    notes = [f"{steps} steps a round; loss: last logged training loss. {versions}."]
    for row in rounds:
        if row.get("search"):
            whose = [cell(row) for cell in apart.values() if cell(row) != MISSING]
            several = "pruned_heads" in row["search"]  # a ticket each round
            told = ", ".join([*whose, f"seed {row['seed']}", *([f"round {row['round']}"] if several else [])])
            notes.append(f"{told}: {_search_text(row['search'])}")
    notes += fingerprint_notes(rounds, _run_label(apart), _READ_BY_RUNS)
    return Table.of(", ".join([title, *common]), columns, rounds, notes)


def _run_label(apart: dict[str, Cell]) -> Callable[[Record], str]:
    """Return the function that names the run of a round by what tells it apart, and its seed."""

    def label(row: Record) -> str:
        return ", ".join([*(cell(row) for cell in apart.values()), f"seed {row['seed']}"])

    return label


def told_apart(rows: Sequence[Record]) -> tuple[list[str], dict[str, Cell]]:
    """Return the common values of runs, and columns for those that differ."""
    cells: dict[str, Cell] = {
        "run": lambda row: row.get("run") or MISSING,
        "method": lambda row: row.get("method") or MISSING,
        "start": lambda row: start_text(row) or MISSING,
        # Dense rounds have no granularity, which does not count as a different one.
        "pruned": lambda row: (
            granularity_text(row) if row.get("sparsity") and "granularity" in row else MISSING
        ),
    }
    common: list[str] = []
    apart: dict[str, Cell] = {}
    for name, cell in cells.items():
        values = dict.fromkeys(map(cell, rows))
        told = [value for value in values if value != MISSING]
        # A run without a folder or without a start ticket differs from a run with one.
        if len(values if name in ("run", "start") else told) > 1:
            apart[name] = cell
        else:
            common += told
    return common, apart


def _search_text(search: Any) -> str:
    """Return the course of the search for a ticket in words."""
    if isinstance(search, list):
        whole = search[0]["metric"]
        return f"smaller tickets tried: {len(search) - 1}; the whole model's metric there was {whole:.4f}"
    if "drawn_at" in search:
        unsettled = "" if search["settled"] else ", before its mask had settled"
        return (
            f"ticket drawn after {search['drawn_at']} of {search['steps']} steps, "
            f"{search['saved']:.0%} of the search saved{unsettled}"
        )
    if "pruned_heads" in search:
        heads, mlps = (f"{search[f'pruned_{kind}']} of {search[kind]}" for kind in ("heads", "mlps"))
        return f"without {heads} heads and {mlps} MLPs"
    return f"masks of step {search['step']} chosen, by {search['metric']:.4f} on the validation data"


def _over_seeds(rounds: Sequence[Record]) -> Iterator[Record]:
    """Yield the fields of a "seeds" record for each round with several seeds."""
    groups: dict[tuple[str, ...], dict[int, Record]] = defaultdict(dict)
    # Dense rounds by seed: those at the start of the runs, and those of dense runs with the same training.
    starts: dict[tuple[Any, ...], dict[int, Record]] = defaultdict(dict)
    dense: dict[tuple[Any, ...], dict[int, Record]] = defaultdict(dict)
    for row in rounds:
        # Runs of one folder share their settings, but a method may determine another sparsity for each seed.
        # Runs without a folder are told apart by their sparsity.
        share = "" if row.get("run") else f"{row['sparsity']:.3f}"
        settings = (*(str(row.get(name)) for name in _SETTINGS), share)
        groups[settings][row["seed"]] = row
        if row["source"] == "all":
            starts[_run_of(row)][row["seed"]] = row
            if row["method"] == "dense":
                dense[_training_of(row)][row["seed"]] = row
    for group in groups.values():
        first, *others = rows = list(group.values())
        if others:
            judges = starts.get(_run_of(first)) or dense.get(_training_of(first)) or {}
            metric = next(iter(first["metrics"]))  # the primary metric comes first
            judged = summarise(metric, rows, () if first["source"] == "all" else list(judges.values()))
            sparsity = statistics.fmean(row["sparsity"] for row in rows)
            yield {**first, "kind": "seeds", "sparsity": sparsity, **judged}


def _training_of(row: Record) -> tuple[Any, ...]:
    return row["steps"], *map(row.get, _TEXT_FORMAT)


def _run_of(row: Record) -> tuple[Any, ...]:
    return row.get("run"), row["method"], *_training_of(row)


def _without_repeats(written: Iterable[Record], computed: Iterable[Record]) -> list[Record]:
    """Return the latest written summaries, with fields of their rounds, and other computed ones."""

    def key(row: Record) -> tuple[Any, ...]:
        return row["method"], row["round"], frozenset(zip(row["seeds"], row["values"], strict=True))

    latest = {key(row): row for row in written}
    others = []
    for row in computed:
        if key(row) in latest:
            latest[key(row)] = row | latest[key(row)]
        else:
            others.append(row)
    return [*latest.values(), *others]


def _summary_table(title: str, rows: Sequence[Record], whose: dict[str, Cell]) -> Table:
    """Return a table of the fields of ``sparsebert.tasks.verdict.summarise``, after the columns ``whose``."""
    common, apart = told_apart(rows)
    columns = apart | whose
    metrics = list(dict.fromkeys(row["metric"] for row in rows))
    if len(metrics) > 1:
        columns["metric"] = lambda row: str(row["metric"])
    else:
        common = [*metrics, *common]
    columns["seeds"] = lambda row: str(len(row["seeds"]))
    columns["mean"] = lambda row: _share(row["mean"])
    columns["std"] = lambda row: _share(row["std"])
    notes = [SEEDS_NOTE]
    if any("verdict" in row for row in rows):
        columns["dense"] = lambda row: (
            mean_text(row["dense_mean"], row["dense_std"]) if "verdict" in row else MISSING
        )
        columns["verdict"] = lambda row: judged_again(row).get("verdict", MISSING)
        notes += [VERDICT_NOTE, *verdict_notes(rows)]
    # Models that are evaluated differ, as rows do.
    read = ("validation",) if "model" in whose else _READ_BY_RUNS
    notes += fingerprint_notes(
        rows, lambda row: ", ".join(cell(row) for cell in (apart | whose).values()), read
    )
    return Table.of(", ".join([title, *common]), columns, rows, notes)


def _evaluation_table(title: str, rows: Sequence[Record]) -> Table:
    columns: dict[str, Cell] = {
        "model": lambda row: str(row["model"]),
        "seed": lambda row: MISSING if row["seed"] is None else str(row["seed"]),
        "sparsity": _sparsity,
        **_metrics(rows, "metrics"),
    }
    if any(row.get("label_map") for row in rows):
        # The model was trained on another data set.
        columns["label map"] = lambda row: label_map_text(row) or MISSING
    compacted = [row for row in rows if "compaction" in row]
    notes = fingerprint_notes(rows, lambda row: str(row["model"]), ("validation",))
    if not compacted:
        return Table.of(title, columns, rows, notes)
    compaction: dict[str, Cell] = {
        "rows dropped below": lambda row: _least(row["compaction"]["min_row_weights"]),
        "size": lambda row: _size(row["compaction"]["weights"], "exact"),
        "as stored": lambda row: _size(row["compaction"]["weights"], "stored"),
        **{f"{name}, masked": cell for name, cell in _metrics(compacted, "masked_metrics").items()},
        "other answers": lambda row: f"{row['compaction']['output_change']['changed']:.2%}",
    }
    columns |= {name: _where_compacted(cell) for name, cell in compaction.items()}
    note = (
        "Size: encoder weights in the remaining rows and columns, relative to the configured ones; masked: "
        "metric of the masked model before compaction; other answers: over the first validation batches."
    )
    return Table.of(title, columns, rows, [note, *notes])


def _where_compacted(cell: Cell) -> Cell:
    return lambda row: cell(row) if "compaction" in row else MISSING


def _least(weights: int) -> str:
    return f"{weights} weights" if weights else "none, exact"


def _size(weights: Record, which: str) -> str:
    return f"{weights[which] / weights['configured']:.2%}"


def _metrics(rows: Iterable[Record], field: str) -> dict[str, Cell]:
    """Return a column for each metric in this field of the rows."""

    def column(name: str) -> Cell:
        return lambda row: _share(row[field].get(name))

    return {name: column(name) for row in rows for name in row[field]}


def _sparsity(row: Record) -> str:
    return MISSING if row["sparsity"] is None else f"{row['sparsity']:.1%}"


def _share(value: float | None) -> str:
    return MISSING if value is None else f"{value:.4f}"
