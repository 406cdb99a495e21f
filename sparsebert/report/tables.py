"""Tables from result records."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from sparsebert.report.table import Table

Record = dict[str, Any]
MISSING = "-"
NAMES = {"onednn": "oneDNN", "deepsparse": "DeepSparse"}
BUSY_NOTE = "Figures marked ? were measured while the machine was busy and are not to be quoted."


def bench_tables(records: Iterable[Record]) -> list[Table]:
    """One table a benchmark run: oneDNN's ratio first. Records of other kinds are passed over."""
    groups: dict[tuple[str, ...], list[Record]] = {}
    for record in records:
        if record["kind"] == "bench":
            groups.setdefault(_run_of(record), []).append(record)
    return [_bench_table(list({row["provider"]: row for row in group}.values())) for group in groups.values()]


def _run_of(record: Record) -> tuple[str, ...]:
    """What the sides compared with each other have in common."""
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
    baselines = [base for base in ("onednn", "eager") if any(base in row["ratio"] for row in records)]
    further = [
        base for base in ("onednn-bf16", "bf16", "deepsparse") if any(base in row["ratio"] for row in records)
    ]
    labels = {**NAMES, "eager": f"eager ({environment['blas']})"}
    columns = (
        "side",
        *(f"vs {labels.get(base, base)}" for base in (*baselines, *further)),
        "ms a batch",
        "p20, p80",
        "samples/s",
        "tokens/s",
        "weights MB",
        "memory MB",
        "error (limit)",
    )
    rows = []
    for record in records:
        doubt = "?" if record["busy"] else ""
        latency = record["latency_ms"]
        rows.append(
            (
                record["provider"] + ("*" if record["in_worker"] else ""),
                *(ratio_text(record["ratio"].get(base), doubt) for base in (*baselines, *further)),
                f"{latency['median']:.2f}",
                f"{latency['p20']:.2f}, {latency['p80']:.2f}",
                rate(record["samples_per_s"]),
                rate(record["tokens_per_s"]),
                megabytes(record["weight_bytes"]),
                megabytes(running_bytes(record)),
                f"{record['gate']['error']:.0e} ({record['gate']['tolerance']:.0e})",
            )
        )
    return Table(
        bench_title(first), columns, tuple(rows), tuple(_bench_notes(records, environment, workload))
    )


def sweep_table(records: Iterable[Record]) -> Table:
    """One row a ticket: the sparse side against the dense ones, from records of several bench runs of one
    workload.

    Raises ValueError where there is no record of the sparse side.
    """
    runs: dict[tuple[str, ...], dict[str, Record]] = {}
    for record in records:
        if record["kind"] == "bench":
            runs.setdefault(_run_of(record), {})[record["provider"]] = record
    sides = [run for run in runs.values() if "sparse" in run]
    if not sides:
        raise ValueError("nothing to tabulate: no record of the sparse side")
    sides.sort(
        key=lambda run: (granularity_text(run["sparse"]["ticket"]), run["sparse"]["ticket"]["sparsity"])
    )
    rows = []
    for run in sides:
        ours = run["sparse"]
        doubt = "?" if ours["busy"] else ""
        dense_bytes = max((side["weight_bytes"] or 0 for side in run.values()), default=0)
        rows.append(
            (
                f"{ours['ticket']['sparsity']:.0%} {granularity_text(ours['ticket'])}",
                ratio_text(ours["ratio"].get("onednn"), doubt),
                ratio_text(ours["ratio"].get("eager"), doubt),
                *(milliseconds(run.get(side)) for side in ("sparse", "onednn", "eager")),
                megabytes(ours["weight_bytes"]),
                megabytes(dense_bytes),
                *(megabytes(running_bytes(run.get(side))) for side in ("sparse", "onednn", "eager")),
            )
        )
    first = sides[0]["sparse"]
    columns = (
        "sparsity",
        "vs oneDNN",
        f"vs eager ({first['environment']['blas']})",
        "sparse ms",
        "oneDNN ms",
        "eager ms",
        "sparse weights MB",
        "dense weights MB",
        "sparse memory MB",
        "oneDNN memory MB",
        "eager memory MB",
    )
    notes = [
        f"{machine_text(first['environment'])}. Ratios: median of paired rounds; weights: the pruned "
        "matrices as stored; memory: peak resident while answering, over the bare interpreter."
    ]
    if any(run["sparse"]["busy"] for run in sides):
        notes.append("THE MACHINE WAS TOO BUSY TO MEASURE: figures marked ? must not be quoted.")
    return Table(workload_title(first["workload"]), columns, tuple(rows), tuple(notes))


def milliseconds(record: Record | None) -> str:
    return MISSING if record is None else f"{record['latency_ms']['median']:.1f}"


def running_bytes(record: Record | None) -> float | None:
    """Peak resident bytes of a side while it answers, over its bare interpreter."""
    return record["memory"]["running_over_baseline"] if record and record["memory"] else None


def bench_title(record: Record) -> str:
    """Model, ticket and batch of a bench record, in words."""
    ticket = record["ticket"]
    zeros = f"{ticket['sparsity']:.1%} {granularity_text(ticket)}-sparse (density {ticket['density']:.1%})"
    return f"{zeros}: {workload_title(record['workload'])}"


def workload_title(workload: Record) -> str:
    """Model, batch and arithmetic in words."""
    weights = ", random weights" if workload["random_weights"] else ""
    lengths = set(workload["lengths"])
    if len(lengths) == 1:
        tokens = f"{workload['lengths'][0]} tokens"
    else:
        padding = 1 - workload["real_tokens"] / workload["padded_tokens"]
        tokens = (
            f"{min(lengths)} to {max(lengths)} tokens ({padding:.0%} padding), {workload['batches']} batches"
        )
    threads = threads_text(workload["threads"])
    return (
        f"{workload['model']}{weights}, batch {workload['batch']}, {tokens}, {workload['dtype']}, {threads}"
    )


def _bench_notes(records: Sequence[Record], environment: Record, workload: Record) -> Iterable[str]:
    yield (
        f"{machine_text(environment)}. Ratios: median of {records[0]['rounds']} paired rounds; "
        "ms: median; weights: the pruned matrices as stored; memory: peak resident while answering, over the "
        "bare interpreter; error: largest difference from the masked dense model, relative."
    )
    formats = records[0]["notes"].get("formats")
    if formats:
        yield f"Layers of the sparse side: {formats}."
    if any(record["in_worker"] for record in records):
        yield "* runs in a worker process, its rounds interleaved with the others'."
    if any(record["busy"] for record in records):
        reasons = "; ".join(dict.fromkeys(reason for record in records for reason in record["busy_reasons"]))
        yield f"THE MACHINE IS TOO BUSY TO MEASURE, figures marked ? must not be quoted: {reasons}."


def layer_tables(records: Iterable[Record]) -> list[Table]:
    """The latest summary of each case of the layer benchmark, with the figures it has to reach."""
    summaries = {row["case"]: row for row in records if row["kind"] == "layer_summary"}
    if not summaries:
        return []
    rows = tuple(
        (
            case,
            ratio_value(row["geomean"], "?" if row["busy_cells"] else ""),
            f"{row['worst']:.2f}x ({row['worst_cell']})",
            MISSING if row["must"] is None else f"{row['must']:g}x",
            MISSING if row["aim"] is None else f"{row['aim']:g}x",
            reached(row["passed"]),
        )
        for case, row in summaries.items()
    )
    first = next(iter(summaries.values()))
    busy = sum(row["busy_cells"] for row in summaries.values())
    notes = [f"{machine_text(first['environment'])}, {threads_text(first['threads'])}. {first['method']}"]
    if busy:
        notes.append(
            f"{busy} cells were measured while the machine was busy: rows marked ? are not to be quoted."
        )
    return [
        Table(
            "Single layers against oneDNN prepacked",
            ("case", "ratio", "worst cell", "must", "aim", "reached"),
            rows,
            tuple(notes),
        )
    ]


def stack_tables(records: Iterable[Record]) -> list[Table]:
    """The latest of each size of the feed-forward stack: the sparse stack against each rival."""
    stacks = {(row["tokens"], row["sparsity"]): row for row in records if row["kind"] == "stack"}
    if not stacks:
        return []
    rivals = list(dict.fromkeys(name for row in stacks.values() for name in row["ratio"]))
    rows = tuple(
        (
            f"{tokens} tokens, {sparsity:.0%}",
            *(ratio_text(row["ratio"].get(name), "?" if row["busy"] else "") for name in rivals),
            f"{row['latency_ms']['sparse']['median']:.1f}",
        )
        for (tokens, sparsity), row in sorted(stacks.items())
    )
    first = next(iter(stacks.values()))
    notes = [f"{machine_text(first['environment'])}, {threads_text(first['threads'])}."]
    if any(row["busy"] for row in stacks.values()):
        notes.append(BUSY_NOTE)
    columns = ("size", *(f"vs {NAMES.get(name, name)}" for name in rivals), "sparse ms")
    return [Table("Feed-forward stack, element", columns, rows, tuple(notes))]


def goal_tables(records: Iterable[Record]) -> list[Table]:
    """The latest of each figure that has a limit, and whether it keeps it."""
    goals = {row["goal"]: row for row in records if row["kind"] == "goal"}
    if not goals:
        return []
    rows = tuple(
        (
            name,
            f"{row['value']:.3g} {row['unit']}" + ("?" if row["busy"] else ""),
            f"{'at most ' if row['at_most'] else ''}{row['must']:g} {row['unit']}",
            f"{row['aim']:g} {row['unit']}",
            reached(row["passed"]),
        )
        for name, row in goals.items()
    )
    notes = [f"{machine_text(list(goals.values())[-1]['environment'])}."]
    if any(row["busy"] for row in goals.values()):
        notes.append(BUSY_NOTE)
    return [Table("Goals", ("figure", "value", "must", "aim", "reached"), rows, tuple(notes))]


def granularity_text(ticket: Record) -> str:
    """element, 4x1 (the block), row, 2:4, ..."""
    block = ticket.get("block_size")
    if ticket.get("granularity") == "block" and block:
        return f"{block[0]}x{block[1]}"
    return str(ticket.get("granularity") or "unknown")


def machine_text(environment: Record) -> str:
    """One line for captions and footnotes."""
    versions = environment["versions"]
    kernels = f"{environment['kernels']} kernels" if environment["kernels"] else "no compiled kernels"
    return (
        f"{environment['cpu']}, {environment['cores']} cores, {kernels}, torch {versions['torch']}, "
        f"oneDNN {environment['onednn'] or 'missing'}"
    )


def threads_text(threads: int) -> str:
    return "1 thread" if threads == 1 else f"{threads} threads"


def ratio_text(ratio: Record | None, doubt: str = "") -> str:
    return MISSING if ratio is None else ratio_value(ratio["median"], doubt)


def ratio_value(value: float, doubt: str = "") -> str:
    return f"{value:.2f}x{doubt}"


def reached(passed: bool | None) -> str:
    """Cell of a verdict; None where no limit was set."""
    return MISSING if passed is None else "yes" if passed else "NO"


def rate(value: float) -> str:
    """Something a second."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}"


def megabytes(count: float | None) -> str:
    return MISSING if count is None else f"{count / 1e6:.1f}"
