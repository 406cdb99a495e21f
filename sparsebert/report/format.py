"""Text of records, for titles, notes and cells."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from sparsebert.tasks.verdict import judged_again

Record = dict[str, Any]
MISSING = "-"
NAMES = {"onednn": "oneDNN", "deepsparse": "DeepSparse", "alps": "ALPS", "sparsegpt": "SparseGPT"}
WORKER_NOTE = "DeepSparse runs in a worker process, its rounds interleaved with the others'."
BUSY_NOTE = "Figures marked ? were measured while the machine was busy; do not quote them."


def baseline_name(name: str, environment: Record) -> str:
    """Return the name for a column; eager PyTorch includes its BLAS, which determines its speed."""
    return f"eager ({environment['blas']})" if name == "eager" else NAMES.get(name, name)


def milliseconds(record: Record | None) -> str:
    """Return the median latency in milliseconds."""
    return MISSING if record is None else f"{record['latency_ms']['median']:.1f}"


def running_bytes(record: Record | None) -> float | None:
    """Return a side's peak resident bytes during inference, relative to its bare interpreter."""
    return record["memory"]["running_over_baseline"] if record and record["memory"] else None


def workload_title(workload: Record) -> str:
    """Return model, batch, dtype and threads in words."""
    model, arithmetic = model_and_arithmetic(workload)
    return f"{model}, {batch_text(workload)}, {arithmetic}"


def label_map_text(record: Record) -> str:
    """Return the labels of the data as outputs of the model, "" without a label map."""
    return ", ".join(f"{label}={output}" for label, output in (record.get("label_map") or {}).items())


def model_and_arithmetic(workload: Record) -> tuple[str, str]:
    """Return the model of a workload, and its dtype and threads, in words."""
    weights = ", random weights" if workload["random_weights"] else ""
    graphs = ", CUDA graphs" if workload.get("graphs") else ""
    arithmetic = f"{workload['dtype']}, {threads_text(workload['threads'])}{graphs}"
    return f"{workload['model']}{weights}", arithmetic


def batch_text(workload: Record) -> str:
    """Return the batches of a workload in words."""
    lengths = set(workload["lengths"])
    if len(lengths) == 1:
        tokens = f"{workload['lengths'][0]} tokens"
    else:
        padding = 1 - workload["real_tokens"] / workload["padded_tokens"]
        tokens = (
            f"{min(lengths)} to {max(lengths)} tokens ({padding:.0%} padding), {workload['batches']} batches"
        )
    return f"batch {workload['batch']}, {tokens}"


def granularity_text(ticket: Record) -> str:
    """Return "element", "4x1" (the block), "panel(32,2)", "2:4", ...; "element" without a granularity."""
    block = ticket.get("block_size")
    if ticket.get("granularity") == "block" and block:
        return f"{block[0]}x{block[1]}"
    if ticket.get("granularity") == "panel" and block:
        return f"panel({block[0]},{block[1]})"
    return str(ticket.get("granularity") or "element")


def tolerance_text(record: Record) -> str:
    """Return ", tolerance bf16" of a bench or profile record; empty for fp32, and for older records."""
    tolerance = record.get("tolerance") or "fp32"
    return "" if tolerance == "fp32" else f", tolerance {tolerance}"


def start_text(row: Record) -> str:
    """Return "from ALPS 60%" for a round of a run with a start ticket, empty for other rounds."""
    start = row.get("start_ticket")
    if not start:
        return ""
    weights = " with its weights" if start["own_weights"] else ""
    return f"from {NAMES.get(start['method'], start['method'])} {start['sparsity']:.0%}{weights}"


@contextlib.contextmanager
def record_errors(part: str) -> Iterator[None]:
    """Turn the errors of a missing field, or one of another type, into ValueError that names the part."""
    try:
        yield
    except (AttributeError, LookupError, TypeError) as error:
        raise ValueError(
            f"{part} is not as this version writes it ({type(error).__name__}: {error})"
        ) from error


def machine_text(environment: Record) -> str:
    """Return the machine in one line, for captions and footnotes."""
    versions = environment["versions"]
    kernels = f"{environment['kernels']} kernels" if environment["kernels"] else "no compiled kernels"
    return (
        f"{environment['cpu']}, cores: {environment['cores']}, {kernels}, torch {versions['torch']}, "
        f"oneDNN {environment['onednn'] or 'missing'}"
    )


def machine_key(row: Record) -> tuple[str, ...]:
    """Return what records of one machine have in common: processor, kernels, oneDNN and torch."""
    environment = row.get("environment")
    if environment is None:  # runs of the Python interface may have none
        return ()
    # In some cases the layer benchmark caps the kernels; their names say so.
    kernels = "" if row["kind"] in ("layer", "layer_summary") else environment["kernels"]
    fields = (environment[name] for name in ("cpu", "cores", "gpu", "onednn"))
    cap = environment.get("onednn_max_isa") if kernels else None
    return (*map(str, fields), str(environment["versions"]["torch"]), str(kernels), str(cap))


def counted(count: int, what: str) -> str:
    """Return count and noun: ``1 table``, ``2 tables``."""
    return f"{count} {what}" if count == 1 else f"{count} {what}s"


def listed(names: Iterable[str], most: int = 3) -> str:
    """Return the names, or the first ones and the number of the others: ``a, b, c and 17 more``."""
    names = list(names)
    if len(names) <= most + 1:
        return ", ".join(names)
    return f"{', '.join(names[:most])} and {len(names) - most} more"


def threads_text(threads: int) -> str:
    return counted(threads, "thread")


def ratio_text(ratio: Record | None, doubt: str = "") -> str:
    return MISSING if ratio is None else ratio_value(ratio["median"], doubt)


def ratio_value(value: float, doubt: str = "") -> str:
    return f"{value:.2f}x{doubt}"


def reached(passed: bool | None) -> str:
    """Return the cell of a verdict; None means that there is no limit."""
    return MISSING if passed is None else "yes" if passed else "NO"


def mean_text(mean: float, std: float | None) -> str:
    """Return ``0.8532 ± 0.0041``, without the deviation for a single seed."""
    return f"{mean:.4f}" if std is None else f"{mean:.4f} ± {std:.4f}"


def mean_and_verdict(summary: Mapping[str, Any]) -> str:
    """Return ``0.8532 ± 0.0041 winning`` from the fields of ``sparsebert.tasks.verdict.summarise``."""
    verdict = judged_again(summary).get("verdict")
    return " ".join(filter(None, (mean_text(summary["mean"], summary["std"]), verdict)))


def verdict_notes(summaries: Iterable[Mapping[str, Any]]) -> list[str]:
    """Return a note for each dense model that is too close to chance, with the spread of its runs."""
    judged = [judged_again(row) for row in summaries]
    reasons = dict.fromkeys(
        f"Undecided on {row.get('task', 'the task')}: {row['reason']}." for row in judged if row.get("reason")
    )
    return list(reasons)


def versions_text(versions: Mapping[str, str | None]) -> str:
    """Return ``sparsebert 0.1.0, torch 2.13.0``, without packages that are not installed."""
    return ", ".join(f"{name} {version}" for name, version in versions.items() if version)


def span_text(values: Iterable[float], form: str) -> str:
    """Return ``60 to 110``, or one number if all are formatted alike."""
    values = list(values)
    low, high = (format(value, form) for value in (min(values), max(values)))
    return low if low == high else f"{low} to {high}"


def rate(value: float) -> str:
    """Return a quantity per second as text."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}"


def megabytes(count: float | None) -> str:
    return MISSING if count is None else f"{count / 1e6:.1f}"
