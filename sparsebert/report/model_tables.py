"""Tables of whole models, from "bench" records: one table per run, or one row per ticket."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from sparsebert.report.format import (
    BUSY_NOTE,
    NAMES,
    WORKER_NOTE,
    Record,
    baseline_name,
    granularity_text,
    machine_text,
    megabytes,
    milliseconds,
    rate,
    ratio_text,
    running_bytes,
    workload_title,
)
from sparsebert.report.table import Table

# Every side shows its ratios against these; ratios against others are shown only if none of these took part.
MAIN_BASELINES: tuple[str, ...] = ("onednn", "eager")
FURTHER_BASELINES = ("onednn-bf16", "bf16", "deepsparse")


def bench_tables(records: Iterable[Record]) -> list[Table]:
    """Return a table for each benchmark run, with oneDNN's ratio first. Skips records of other kinds."""
    groups: dict[tuple[str, ...], list[Record]] = {}
    for record in records:
        if record["kind"] == "bench":
            groups.setdefault(_run_of(record), []).append(record)
    return [_bench_table(list({row["provider"]: row for row in group}.values())) for group in groups.values()]


def _run_of(record: Record) -> tuple[str, ...]:
    """Return what the records of a comparison have in common."""
    environment = record["environment"]
    return (
        environment["cpu"],
        str(environment["gpu"]),
        repr(sorted(record["workload"].items(), key=str)),
        repr(sorted(record["ticket"].items(), key=str)),
        record["format"],
    )


def _bench_table(records: Sequence[Record]) -> Table:
    first = records[0]
    environment, workload = first["environment"], first["workload"]
    present = list(first["ratio"])
    baselines = [base for base in (*MAIN_BASELINES, *FURTHER_BASELINES) if base in present] or present
    has_memory = any(running_bytes(record) for record in records)
    columns = (
        "side",
        *(f"vs {baseline_name(base, environment)}" for base in baselines),
        "ms a batch",
        "p20, p80",
        "samples/s",
        "tokens/s",
        "weights MB",
        *(["memory MB"] if has_memory else []),
        "error (limit)",
    )
    rows = []
    for record in records:
        doubt = "?" if record["busy"] else ""
        latency = record["latency_ms"]
        rows.append(
            (
                record["provider"] + ("*" if record["in_worker"] else ""),
                *(ratio_text(record["ratio"].get(base), doubt) for base in baselines),
                f"{latency['median']:.2f}",
                f"{latency['p20']:.2f}, {latency['p80']:.2f}",
                rate(record["samples_per_s"]),
                rate(record["tokens_per_s"]),
                megabytes(record["weight_bytes"]),
                *([megabytes(running_bytes(record))] if has_memory else []),
                f"{record['gate']['error']:.0e} ({record['gate']['tolerance']:.0e})",
            )
        )
    return Table(
        bench_title(first), columns, tuple(rows), tuple(_bench_notes(records, environment, workload))
    )


def bench_title(record: Record) -> str:
    """Return model, ticket and batch of a bench record in words."""
    ticket = record["ticket"]
    zeros = f"{ticket['sparsity']:.1%} {granularity_text(ticket)}-sparse (density {ticket['density']:.1%})"
    return f"{zeros}: {workload_title(record['workload'])}"


def _bench_notes(records: Sequence[Record], environment: Record, workload: Record) -> Iterable[str]:
    memory = "memory: peak resident bytes during inference, minus those of the bare interpreter; "
    yield (
        f"{machine_text(environment)}. Ratios: median of {records[0]['rounds']} paired rounds; "
        "ms: median; weights: the pruned matrices as stored; "
        f"{memory if any(running_bytes(record) for record in records) else ''}"
        "error: largest difference from the masked dense model, relative."
    )
    formats = records[0]["notes"].get("formats")
    if formats:
        fused = "; the encoder runs in one native call" if "encoder" in records[0]["notes"] else ""
        yield f"Layers of the sparse side: {formats}{fused}."
    if plan := records[0]["notes"].get("encoder_plan"):
        yield f"Encoder of the sparse side: {plan}."
    if (tolerance := records[0].get("tolerance") or "fp32") != "fp32":
        yield (
            f"The sparse side may compute in {tolerance}: its outputs differ from those in fp32 by up to "
            f"{records[0]['gate']['error']:.1e} of the largest."
        )
    if any(record["in_worker"] for record in records):
        yield WORKER_NOTE
    if any(record["busy"] for record in records):
        reasons = "; ".join(dict.fromkeys(reason for record in records for reason in record["busy_reasons"]))
        yield f"THE MACHINE IS TOO BUSY TO MEASURE, figures marked ? must not be quoted: {reasons}."


def sweep_tables(records: Iterable[Record]) -> list[Table]:
    """Return a table for each workload, with a row for each ticket. Skips records of other kinds."""
    return [_sweep_table(title, sorted(runs, key=_by_ticket)) for title, runs in _by_workload(records)]


def sweeps(records: Iterable[Record]) -> list[list[Record]]:
    """Return the latest "bench" records of each workload with several tickets."""
    return [
        [row for run in runs for row in run.values()] for _, runs in _by_workload(records) if len(runs) > 1
    ]


def _by_workload(records: Iterable[Record]) -> list[tuple[str, list[dict[str, Record]]]]:
    """Return for each workload its title and, for each ticket, the latest record of each side."""
    workloads: dict[tuple[str, str], dict[tuple[str, ...], dict[str, Record]]] = {}
    for record in records:
        if record["kind"] == "bench":
            title = workload_title(record["workload"])
            runs = workloads.setdefault((record["environment"]["cpu"], title), {})
            runs.setdefault(_run_of(record), {})[record["provider"]] = record
    sparse = {key: [run for run in runs.values() if "sparse" in run] for key, runs in workloads.items()}
    return [(title, runs) for (_, title), runs in sparse.items() if runs]


def _by_ticket(run: dict[str, Record]) -> tuple[bool, str, float]:
    """Return the sort key of a run: element first, then other granularities."""
    granularity = granularity_text(run["sparse"]["ticket"])
    return granularity != "element", granularity, run["sparse"]["ticket"]["sparsity"]


def _sweep_table(title: str, runs: Sequence[dict[str, Record]]) -> Table:
    environment = runs[0]["sparse"]["environment"]
    present = {name for run in runs for name in run}
    main = [name for name in MAIN_BASELINES if name in present]
    baselines = [*main, *sorted(present - {"sparse", *MAIN_BASELINES})]
    timed = ["sparse", *main]
    measured = [name for name in timed if any(running_bytes(run.get(name)) for run in runs)]
    columns = (
        "sparsity",
        *(f"vs {baseline_name(name, environment)}" for name in baselines),
        *(f"{NAMES.get(name, name)} ms" for name in timed),
        "sparse weights MB",
        "dense weights MB",
        *(f"{NAMES.get(name, name)} memory MB" for name in measured),
    )
    rows = []
    for run in runs:
        ours = run["sparse"]
        doubt = "?" if ours["busy"] else ""
        dense_bytes = max(side["weight_bytes"] or 0 for side in run.values())
        rows.append(
            (
                f"{ours['ticket']['sparsity']:.0%} {granularity_text(ours['ticket'])}",
                *(ratio_text(ours["ratio"].get(name), doubt) for name in baselines),
                *(milliseconds(run.get(name)) for name in timed),
                megabytes(ours["weight_bytes"]),
                megabytes(dense_bytes),
                *(megabytes(running_bytes(run.get(name))) for name in measured),
            )
        )
    notes = [
        f"{machine_text(environment)}. Ratios: median of paired rounds; weights: the pruned matrices as "
        "stored; memory: peak resident bytes during inference, minus those of the bare interpreter."
    ]
    forced = [row[0] for row, run in zip(rows, runs, strict=True) if run["sparse"]["format"] != "auto"]
    if forced:
        notes.append(f"The format was requested, so no layer could stay dense: {', '.join(forced)}.")
    if any(side["in_worker"] for run in runs for side in run.values()):
        notes.append(WORKER_NOTE)
    if any(run["sparse"]["busy"] for run in runs):
        notes.append(BUSY_NOTE)
    return Table(title, columns, tuple(rows), tuple(notes))
