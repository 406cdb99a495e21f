"""Tables of the gain of compaction: size, accuracy and speed, exact and with thin rows dropped."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from sparsebert.report.format import BUSY_NOTE, Record, baseline_name, machine_text, ratio_text, threads_text
from sparsebert.report.table import Table
from sparsebert.tasks import metrics

# Jiang et al. 2023, section 5: BERT-base on MNLI at a density of 3 %, by the fewest weights in a row.
PUBLISHED = {0: "47.43 %, 1.37x", 10: "25.19 %, 1.76x"}
PUBLISHED_NOTE = (
    "Published: SMP's own figures for BERT-base on MNLI at the same density; the paper gives neither "
    "machine, batch size nor length. nn_pruning publishes 2.44x at an F1 of 87.7 and 3.64x at 85.5 "
    "(BERT-base, SQuAD, RTX 3090), for comparison on a GPU."
)


def compaction_tables(records: Iterable[Record]) -> list[Table]:
    """Return the tables of each model."""
    models: dict[str, list[Record]] = {}
    for row in records:
        if row["kind"] == "compaction" or (row["kind"] == "bench" and "min_row_weights" in row):
            name = row["model"] if row["kind"] == "compaction" else row["workload"]["model"]
            models.setdefault(name, []).append(row)
    tables: list[Table] = []
    for rows in models.values():
        sizes = [row for row in rows if row["kind"] == "compaction"]
        tables += [_sizes(sizes), *_speeds(rows)] if sizes else []
    return tables


def _sizes(sizes: Sequence[Record]) -> Table:
    first = sizes[0]
    rows = tuple(
        (
            _rule(row),
            f"{row['density']:.2%}",
            f"{row['weights']['exact'] / row['weights']['configured']:.2%}",
            f"{row['weights']['stored'] / row['weights']['configured']:.2%}",
            f"{100 * row['metrics'][metrics.primary(row['task'])]:.1f}",
            PUBLISHED.get(row["min_row_weights"], "-"),
        )
        for row in sizes
    )
    columns = ("compaction", "density", "size", "size as stored", metrics.primary(first["task"]), "published")
    notes = (
        "Size: encoder weights in the remaining rows and columns, relative to the configured ones; as "
        f"stored: with the others skipped only where that pays. {PUBLISHED_NOTE}",
    )
    return Table(f"Compaction: {first['model']} on {first['task']}, SMP-S", columns, rows, notes)


def _speeds(records: Sequence[Record]) -> list[Table]:
    runs: dict[tuple[object, ...], dict[str, Record]] = {}
    for row in records:
        if row["kind"] == "bench":
            workload = row["workload"]
            key = (row["min_row_weights"], workload["batch"], tuple(workload["lengths"]))
            runs.setdefault(key, {})[row["provider"]] = row
    if not runs:
        return []
    sides = list(runs.values())
    environment, workload = sides[0]["sparse"]["environment"], sides[0]["sparse"]["workload"]
    baselines = ("onednn", "eager")
    rows = tuple(
        (
            _rule(side["sparse"]),
            str(side["sparse"]["workload"]["batch"]),
            _lengths(side["sparse"]["workload"]),
            *(ratio_text(side[name]["ratio"].get("onednn"), _doubt(side)) for name in ("compact", "sparse")),
            ratio_text(side["sparse"]["ratio"].get("eager"), _doubt(side)),
            *(f"{side[name]['latency_ms']['median']:.2f}" for name in ("sparse", "compact", *baselines)),
        )
        for side in sides
    )
    columns = (
        "compaction",
        "batch",
        "tokens",
        "compact vs oneDNN",
        "compact + sparse vs oneDNN",
        f"compact + sparse vs {baseline_name('eager', environment)}",
        *(f"{name} ms" for name in ("compact + sparse", "compact", "oneDNN", "eager")),
    )
    notes = [f"{machine_text(environment)}, {threads_text(workload['threads'])}. Median of paired rounds."]
    if any(_doubt(side) for side in sides):
        notes.append(BUSY_NOTE)
    return [Table("Speed after compaction, whole model, fp32", columns, rows, tuple(notes))]


def _rule(row: Record) -> str:
    least = row["min_row_weights"]
    return f"rows of fewer than {least} weights dropped (lossy)" if least else "exact"


def _lengths(workload: Record) -> str:
    shortest, longest = min(workload["lengths"]), max(workload["lengths"])
    return str(longest) if shortest == longest else f"{shortest} to {longest}"


def _doubt(side: dict[str, Record]) -> str:
    return "?" if side["sparse"]["busy"] else ""
