"""Tables of single layers, stacks and goals, from their records."""

from __future__ import annotations

from collections.abc import Iterable

from sparsebert.report.format import (
    BUSY_NOTE,
    MISSING,
    Record,
    baseline_name,
    machine_text,
    ratio_text,
    ratio_value,
    reached,
    threads_text,
)
from sparsebert.report.table import Table


def layer_tables(records: Iterable[Record]) -> list[Table]:
    """Return the latest summary of each case of the layer benchmark, with its goal."""
    summaries = {row["case"]: row for row in records if row["kind"] == "layer_summary"}
    if not summaries:
        return []
    rows = tuple(
        (
            case,
            ratio_value(row["geomean"], "?" if row["busy_cells"] else ""),
            f"{row['worst']:.2f}x ({row['worst_cell']})",
            ratio_value(row["equal_turns"], "?" if row["busy_cells"] else ""),
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
        notes.append(f"{busy} cells were measured while the machine was busy; do not quote rows marked ?.")
    return [
        Table(
            "Single layers against oneDNN prepacked",
            ("case", "ratio", "worst cell", "equal turns", "must", "aim", "reached"),
            rows,
            tuple(notes),
        )
    ]


def stack_tables(records: Iterable[Record]) -> list[Table]:
    """Return the latest speed-ups of the sparse feed-forward stack over each baseline, by size."""
    stacks = {(row["tokens"], row["sparsity"]): row for row in records if row["kind"] == "stack"}
    if not stacks:
        return []
    baselines = list(dict.fromkeys(name for row in stacks.values() for name in row["ratio"]))
    rows = tuple(
        (
            f"{tokens} tokens, {sparsity:.0%}",
            *(ratio_text(row["ratio"].get(name), "?" if row["busy"] else "") for name in baselines),
            f"{row['latency_ms']['sparse']['median']:.1f}",
        )
        for (tokens, sparsity), row in sorted(stacks.items())
    )
    first = next(iter(stacks.values()))
    notes = [f"{machine_text(first['environment'])}, {threads_text(first['threads'])}."]
    if any(row["busy"] for row in stacks.values()):
        notes.append(BUSY_NOTE)
    columns = (
        "size",
        *(f"vs {baseline_name(name, first['environment'])}" for name in baselines),
        "sparse ms",
    )
    return [Table("Feed-forward stack, element", columns, rows, tuple(notes))]


def int8_tables(records: Iterable[Record]) -> list[Table]:
    """Return the latest speeds of the int8 layers, in effective operations a second, by size."""
    cells = {(*row["shape"], row["tokens"]): row for row in records if row["kind"] == "int8_layer"}
    if not cells:
        return []
    sides = {
        "layer": "4x1 int8",
        "added": "4x1 int8, tokens shared",
        "dense": "dense int8",
        "vector_fp32": "4x1 fp32",
        "onednn_fp32": "oneDNN fp32",
        "onednn_int8": "oneDNN int8, tokens in int8",
    }
    rows = tuple(
        (
            f"{out}x{columns}, M = {tokens}{'?' if row['busy'] else ''}",
            *(f"{row['tops'][side]:.2f}" if side in row["tops"] else MISSING for side in sides),
        )
        for (out, columns, tokens), row in cells.items()
    )
    first = next(iter(cells.values()))
    notes = [
        f"{machine_text(first['environment'])}, {threads_text(first['threads'])}, int8 by {first['unit']}. "
        f"{first['sparsity']:.0%} zeros; 10^12 operations a second, zeros counted (2 M N K / time)."
    ]
    if any(row["busy"] for row in cells.values()):
        notes.append(BUSY_NOTE)
    return [Table("Layers in int8", ("size", *sides.values()), rows, tuple(notes))]


def goal_tables(records: Iterable[Record]) -> list[Table]:
    """Return the latest value of each goal, and whether it is reached."""
    goals = {row["goal"]: row for row in records if row["kind"] == "goal"}
    if not goals:
        return []
    rows = tuple(
        (
            name,
            _goal_value(row),
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


def _goal_value(row: Record) -> str:
    if row["value"] is None:
        return f"not measured on this CPU ({row['reason']})"
    return f"{row['value']:.3g} {row['unit']}" + ("?" if row["busy"] else "")


def selection_tables(records: Iterable[Record]) -> list[Table]:
    """Return the latest measurement of each function that selects the highest scores."""
    sides = {(row["side"], row["tied"]): row for row in records if row["kind"] == "selection"}
    if not sides:
        return []
    rows = tuple(
        (
            side + (", tied scores" if tied else ""),
            f"{row['seconds']:.2f}{'?' if row['busy'] else ''}",
            f"{row['peak_bytes'] / row['score_bytes']:.2f}x",
            f"{row['beyond']:+d}" if row["beyond"] else "exact",
        )
        for (side, tied), row in sides.items()
    )
    first = next(iter(sides.values()))
    notes = [
        f"{machine_text(first['environment'])}, {threads_text(first['threads'])}. {first['kept']:,} of "
        f"{first['entries']:,} float32 scores, as a mask; peak memory: of the process, relative to "
        "its size before the scores, as a multiple of their bytes; kept: entries beyond the requested ones; "
        "tied: scores with about a thousand distinct values."
    ]
    if any(row["busy"] for row in sides.values()):
        notes.append(BUSY_NOTE)
    return [Table("Selecting weights", ("by", "seconds", "peak memory", "kept"), rows, tuple(notes))]
