"""Tables of whole models, from "bench" records: one table per run, or one row per ticket."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from sparsebert.report.break_even import NOT_DENSE, break_even_sentence, curves
from sparsebert.report.fingerprint_notes import fingerprint_notes
from sparsebert.report.format import (
    BUSY_NOTE,
    MISSING,
    NAMES,
    WORKER_NOTE,
    Record,
    baseline_name,
    batch_text,
    granularity_text,
    machine_text,
    megabytes,
    milliseconds,
    model_and_arithmetic,
    rate,
    ratio_text,
    ratio_value,
    running_bytes,
    tolerance_text,
    workload_title,
)
from sparsebert.report.table import Table

# Every side shows its ratios against these; ratios against others are shown only if none of these took part.
MAIN_BASELINES: tuple[str, ...] = ("onednn", "eager")
FURTHER_BASELINES = ("onednn-bf16", "bf16", "deepsparse")
FASTEST = "fastest dense"


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
        tolerance_text(record),
    )


def _bench_table(records: Sequence[Record]) -> Table:
    first = records[0]
    environment, workload = first["environment"], first["workload"]
    present = list(first["ratio"])
    fastest = fastest_dense(records)
    further = ("deepsparse",) if fastest else FURTHER_BASELINES
    baselines = [base for base in (*MAIN_BASELINES, *further) if base in present] or present
    has_memory = any(running_bytes(record) for record in records)
    columns = (
        "side",
        *([f"vs {FASTEST}"] if fastest else []),
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
                *([ratio_text(record["ratio"].get(fastest), doubt)] if fastest else []),
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


def fastest_dense(records: Iterable[Record]) -> str | None:
    """Return the dense baseline with the least latency among the records of one run.

    Returns None unless baselines below fp32 took part: the fastest of some fp32 libraries is not the fastest
    dense model of a machine.
    """
    dense = [record for record in records if record["provider"] not in NOT_DENSE]
    if len({record.get("precision") for record in dense}) < 2:
        return None
    fastest: str = min(dense, key=lambda record: record["latency_ms"]["median"])["provider"]
    return fastest


def _form(records: Iterable[Record], name: str) -> str:
    """Return which of its forms a baseline chose, in brackets; empty if it has one form."""
    notes = next(record["notes"] for record in records if record["provider"] == name)
    form = notes.get("form") or notes.get("engine")
    return f" ({form})" if form else ""


def bench_title(record: Record) -> str:
    """Return model, ticket and batch of a bench record in words."""
    ticket = record["ticket"]
    zeros = f"{ticket['sparsity']:.1%} {granularity_text(ticket)}-sparse (density {ticket['density']:.1%})"
    return f"{zeros}: {workload_title(record['workload'])}{tolerance_text(record)}"


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
    if fastest := fastest_dense(records):
        yield f"Fastest dense model here: {fastest}{_form(records, fastest)}."
    left_out = records[0].get("left_out") or {}
    if left_out:
        yield "Not compared: " + "; ".join(f"{name} ({reason})" for name, reason in left_out.items()) + "."
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
    ours = run["sparse"]
    return granularity != "element", granularity + tolerance_text(ours), ours["ticket"]["sparsity"]


def _named_ratio(ours: Record, baseline: str | None, doubt: str) -> str:
    """Return the ratio against a baseline with its name."""
    ratio = ratio_text(ours["ratio"].get(baseline), doubt)
    return ratio if baseline is None else f"{ratio} ({baseline})"


def machine_tables(records: Iterable[Record]) -> list[Table]:
    """Return tables with the machines side by side: each case against each machine's fastest dense model.

    A machine is a CPU with the instruction set of the kernels, and a cap of oneDNN's if there is one. Each
    model has a table.
    """
    models: dict[str, dict[str, list[Record]]] = {}
    groups: dict[tuple[str, ...], dict[str, Record]] = {}
    for record in records:
        if record["kind"] == "bench":
            key = (*_run_of(record), *_instructions(record["environment"]))
            groups.setdefault(key, {})[record["provider"]] = record
    for run in groups.values():
        fastest = fastest_dense(run.values())
        ours = run.get("sparse")
        if ours is None or fastest is None or fastest not in ours["ratio"]:
            continue
        cpu, *instructions = ours["environment"]["cpu"], *_instructions(ours["environment"])
        machine = f"{cpu} ({', '.join(filter(None, instructions))})"
        model = ", ".join(model_and_arithmetic(ours["workload"]))
        models.setdefault(model, {}).setdefault(machine, []).append({**ours, "fastest": fastest})
    return [_machine_table(model, machines) for model, machines in models.items()]


def _machine_table(model: str, machines: Mapping[str, Sequence[Record]]) -> Table:
    """Return the table of a model.

    Args:
        model: Model, dtype and threads in words.
        machines: Sparse records of each machine; "fastest" names the fastest dense side.
    """
    cases: dict[tuple[str, ...], dict[str, str]] = {}
    everything = [record for records in machines.values() for record in records]
    for machine, records in machines.items():
        for ours in records:
            ratio = ratio_value(ours["ratio"][ours["fastest"]]["median"], "?" if ours["busy"] else "")
            cells = cases.setdefault(_case(ours), {})
            cells[machine] = f"{ratio} of {ours['fastest']} ({ours['latency_ms']['median']:.1f} ms)"
    notes = [
        "Speed-up over the fastest dense model of each machine, of any library in fp32, bf16 or int8, named "
        "in each cell, with the sparse model's milliseconds a batch; tolerance: the lowest precision that "
        "the sparse model may compute in."
    ]
    if any(record["busy"] for record in everything):
        notes.append(BUSY_NOTE)
    rows = [
        (*case, *(cells.get(machine, MISSING) for machine in machines))
        for case, cells in sorted(cases.items())
    ]
    columns = ("ticket", "tolerance", "batch", *machines)
    return Table(f"Machines side by side: {model}", columns, tuple(rows), tuple(notes))


def _case(record: Record) -> tuple[str, ...]:
    ticket, tolerance = record["ticket"], record.get("tolerance") or "fp32"
    name = f"{ticket['sparsity']:.0%} {granularity_text(ticket)}"
    return name, tolerance, batch_text(record["workload"]).removeprefix("batch ")


def _instructions(environment: Record) -> tuple[str, str]:
    """Return the instruction set of the kernels, and the cap of oneDNN's; empty without one."""
    cap = environment.get("onednn_max_isa")
    return f"{environment['kernels'] or 'no'} kernels", f"oneDNN capped at {cap}" if cap else ""


def _sweep_table(title: str, runs: Sequence[dict[str, Record]]) -> Table:
    environment = runs[0]["sparse"]["environment"]
    present = {name for run in runs for name in run}
    main = [name for name in MAIN_BASELINES if name in present]
    baselines = [*main, *sorted(present - {"sparse", *MAIN_BASELINES})]
    timed = ["sparse", *main]
    measured = [name for name in timed if any(running_bytes(run.get(name)) for run in runs)]
    fastest = [fastest_dense(run.values()) for run in runs]
    columns = (
        "sparsity",
        *([f"vs {FASTEST}"] if any(fastest) else []),
        *(f"vs {baseline_name(name, environment)}" for name in baselines),
        *(f"{NAMES.get(name, name)} ms" for name in timed),
        "sparse weights MB",
        "dense weights MB",
        *(f"{NAMES.get(name, name)} memory MB" for name in measured),
    )
    rows = []
    for run, dense in zip(runs, fastest, strict=True):
        ours = run["sparse"]
        doubt = "?" if ours["busy"] else ""
        dense_bytes = max(side["weight_bytes"] or 0 for side in run.values())
        rows.append(
            (
                f"{ours['ticket']['sparsity']:.0%} {granularity_text(ours['ticket'])}{tolerance_text(ours)}",
                *([_named_ratio(ours, dense, doubt)] if any(fastest) else []),
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
    sparse = [run["sparse"] for run in runs]
    notes += fingerprint_notes(sparse, lambda row: " ".join(_case(row)[:2]), ("model",))
    if sentence := break_even_sentence(curves(sparse), environment):
        notes.append(sentence)
    forced = [row[0] for row, run in zip(rows, runs, strict=True) if run["sparse"]["format"] != "auto"]
    if forced:
        notes.append(f"The format was requested, so no layer could stay dense: {', '.join(forced)}.")
    if any(side["in_worker"] for run in runs for side in run.values()):
        notes.append(WORKER_NOTE)
    if any(run["sparse"]["busy"] for run in runs):
        notes.append(BUSY_NOTE)
    return Table(title, columns, tuple(rows), tuple(notes))
