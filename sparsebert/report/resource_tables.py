"""Tables of the time, memory and energy that runs used, from the field ``resources`` of their records."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from sparsebert.accounting.usage import JOULES_PER_KWH, total
from sparsebert.report.format import MISSING, Record, counted, machine_text, megabytes
from sparsebert.report.run_tables import told_apart
from sparsebert.report.table import Cell, Table

_PER_WH = JOULES_PER_KWH / 1e3
# Kinds of records whose resources are the sum of others'.
_SUMS = ("run", "seeds", "eval_seeds")
_DEVICES = {"cpu": "CPU", "gpu": "GPU"}


def has_resources(row: Record) -> bool:
    """Whether a record says what its run used, and no other record says it of the same run."""
    return bool(row.get("resources")) and row["kind"] not in _SUMS


def resource_tables(records: Iterable[Record]) -> list[Table]:
    """Return a table of the rounds of each task and model, and one of all other commands."""
    groups: dict[tuple[str, str], list[Record]] = {}
    others = []
    for row in filter(has_resources, records):
        if row["kind"] == "round":
            groups.setdefault((row["task"], row["model"]), []).append(row)
        else:
            others.append(row)
    tables = [_rounds_table(task, model, rows) for (task, model), rows in groups.items()]
    if others:
        tables.append(_table("Resources", {"command": _command, "on": _subject}, others))
    return tables


def resource_line(record: Record) -> str:
    """Return what a command used in one line, from its record."""
    used = record["resources"]
    parts = [f"{_duration(used['wall_seconds'])}, {_duration(used['cpu_seconds'])} of CPU time"]
    if used["cuda_seconds"] is not None:
        parts.append(f"{_duration(used['cuda_seconds'])} of GPU time")
    if used["peak_rss_bytes"]:
        parts.append(f"{megabytes(used['peak_rss_bytes'])} MB of memory at the peak")
    if used["peak_gpu_bytes"] is not None:
        parts.append(f"{megabytes(used['peak_gpu_bytes'])} MB on the GPU")
    if used["energy"]["joules"] is not None:
        parts.append(f"{_figure(used['energy']['joules'] / _PER_WH)} Wh")
    if used["carbon"]:
        parts.append(f"{_figure(used['carbon']['grams'])} g of CO2")
    if used["resumed"]:
        parts.append(f"in {used['resumed'] + 1} sessions")
    return f"used {', '.join(parts)}{_lacking([record], '; energy')}"


def _rounds_table(task: str, model: str, rounds: Sequence[Record]) -> Table:
    common, apart = told_apart(rounds)
    columns: dict[str, Cell] = {
        **apart,
        "round": lambda row: str(row["round"]),
        "seed": lambda row: str(row["seed"]),
    }
    rows = list(rounds)
    if len(rounds) > 1:
        columns = {name: _where_round(cell) for name, cell in columns.items()}
        first = next(iter(columns))
        columns[first] = _sum_named(columns[first])
        rows.append({"resources": total(row["resources"] for row in rounds)})
    note = f"Of process 0 of {rounds[0]['processes']}." if rounds[0].get("processes", 1) > 1 else ""
    title = ", ".join([f"Resources of rounds: {model} on {task}", *common])
    return _table(title, columns, rows, [note] if note else [])


def _where_round(cell: Cell) -> Cell:
    return lambda row: cell(row) if "round" in row else MISSING


def _sum_named(cell: Cell) -> Cell:
    return lambda row: cell(row) if "round" in row else "all"


def _table(title: str, whose: dict[str, Cell], rows: Sequence[Record], notes: Sequence[str] = ()) -> Table:
    def used(field: str, text: Callable[[float], str]) -> Cell:
        return lambda row: MISSING if row["resources"][field] is None else text(row["resources"][field])

    every = [row["resources"] for row in rows]
    columns = {
        **whose,
        "wall": used("wall_seconds", _duration),
        "CPU time": used("cpu_seconds", _duration),
    }
    if any(each["cuda_seconds"] is not None for each in every):
        columns["GPU time"] = used("cuda_seconds", _duration)
    columns["peak MB"] = used("peak_rss_bytes", megabytes)
    if any(each["peak_gpu_bytes"] is not None for each in every):
        columns["GPU peak MB"] = used("peak_gpu_bytes", megabytes)
    if any(each["energy"]["joules"] is not None for each in every):
        columns["Wh"] = lambda row: _energy(row["resources"])
    if any(each["carbon"] for each in every):
        columns["g CO2"] = lambda row: _carbon(row["resources"])
    if any(each["resumed"] for each in every):
        columns["resumed"] = lambda row: str(row["resources"]["resumed"])
    environment = rows[0].get("environment")
    machine = [f"{machine_text(environment)}."] if environment else []
    return Table.of(title, columns, rows, [*machine, *notes, *_notes(rows)])


def _notes(rows: Sequence[Record]) -> list[str]:
    """Return what the figures are of, and why others are missing."""
    resources = [row["resources"] for row in rows]
    since = "the process" if any(each["process_peak"] for each in resources) else "the run or round"
    notes = [f"Peak: resident memory of the process since the start of {since}."]
    if any(each["cuda_seconds"] is not None for each in resources):
        notes[0] += " GPU time: between CUDA events at start and end."
    domains = dict.fromkeys(name for each in resources for name in each["energy"]["domains"])
    if domains:
        notes.append(f"Energy: {', '.join(domains)}, with what other programs used meanwhile.")
    if lacking := _lacking(rows, "Energy"):
        notes.append(f"{lacking}.")
    intensities = dict.fromkeys(each["carbon"]["grams_per_kwh"] for each in resources if each["carbon"])
    if intensities:
        shown = ", ".join(f"{each:g}" for each in intensities)
        notes.append(f"CO2 of the measured energy, at {shown} g/kWh, as the user gave it.")
    return notes


def _lacking(rows: Sequence[Record], energy: str) -> str:
    """Return "energy not available: CPU: reason"; empty where all was measured."""
    reasons = {
        device: reason
        for row in rows
        for device, reason in row["resources"]["energy"]["not_measured"].items()
    }
    if not reasons:
        return ""
    described = (f"{_DEVICES.get(device, device)}: {reason}" for device, reason in reasons.items())
    return f"{energy} not available: {'; '.join(described)}"


def _command(row: Record) -> str:
    return str(row["kind"])


def _subject(row: Record) -> str:
    """Return what a command worked on."""
    if row["kind"] == "transfer":
        return f"{row['source']} on {row['task']}, {counted(len(row['seeds']), 'seed')}"
    if row["kind"] == "experiment":
        return f"{row['row_label']}, {row['column_label']}, seed {row['seed']}"
    if "workload" in row:
        return str(row["workload"]["model"])
    task = f" on {row['task']}" if row.get("task") else ""
    seed = f", seed {row['seed']}" if row["kind"] == "eval" and row["seed"] is not None else ""
    return f"{row['model']}{task}{seed}"


def _energy(resources: Record) -> str:
    joules = resources["energy"]["joules"]
    if joules is None:
        return MISSING
    partial = " (part)" if resources["energy"]["not_measured"] else ""
    return f"{_figure(joules / _PER_WH)}{partial}"


def _carbon(resources: Record) -> str:
    return _figure(resources["carbon"]["grams"]) if resources["carbon"] else MISSING


def _figure(value: float) -> str:
    """Return a number with three digits, or all before the point."""
    return f"{value:.3g}" if value < 100 else f"{value:,.0f}"


def _duration(seconds: float) -> str:
    """Return ``4.2 s``, ``12.5 min`` or ``3.5 h``."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    if seconds < 3600:
        return f"{seconds / 60:.1f} min"
    return f"{seconds / 3600:.1f} h"
