"""Tables of GPU kernels that were compiled ahead of time."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence

from sparsebert.report.format import MISSING, Record
from sparsebert.report.table import Table

NOTE = (
    "Compiled ahead of time, nothing was run or timed. Spills: instructions that move registers to memory "
    "and back; instructions an output element: those after the main loop; ceiling: the share of the tensor "
    "cores' peak at which the schedulers can issue the main loop and, for packed panels, what follows it, an "
    "upper bound and no forecast. Exact fp32: products of float32 without TensorFloat-32, which NVIDIA's "
    "tensor cores do not have."
)


def aot_tables(records: Iterable[Record]) -> list[Table]:
    """Return a row for each kernel family, target and compiler version, with ranges over configurations."""
    groups: dict[tuple[str, str, str], list[Record]] = {}
    for row in _latest(records):
        groups.setdefault((row["family"], row["target"], row["triton"]), []).append(row)
    if not groups:
        return []
    rows = tuple(
        (
            *key,
            str(len(group)),
            _kinds(group),
            _span(group, "registers"),
            str(sum(bool(row["spill_stores"] or row["spill_loads"]) for row in group)),
            _kilobytes(max((row["shared_memory"] or 0 for row in group), default=0)),
            _span(group, "loop_instructions"),
            _span(group, "element_instructions"),
            _span(group, "ceiling", percent=True),
            str(sum(bool(row["problems"]) for row in group)),
        )
        for key, group in groups.items()
    )
    columns = (
        "kernel", "target", "triton", "configurations", "tensor cores", "registers", "with spills",
        "most shared KB", "loop instructions", "instructions an output element", "ceiling", "with problems",
    )  # fmt: skip
    return [Table("GPU kernels, compiled ahead of time", columns, rows, (NOTE,))]


def configuration_tables(records: Iterable[Record]) -> list[Table]:
    """Return a table for each kernel family, with a row for each configuration, target and version."""
    tables = []
    ordered = sorted(_latest(records), key=lambda row: row["family"])
    for family, group in itertools.groupby(ordered, key=lambda row: row["family"]):
        rows = tuple(_row(row) for row in group)
        columns = (
            "configuration", "target", "triton", "registers", "spills", "shared KB", "tensor cores",
            "buffers", "loop instructions", "instructions an output element", "ceiling", "problems",
        )  # fmt: skip
        tables.append(Table(family, columns, rows))
    return tables


def _row(row: Record) -> tuple[str, ...]:
    compiled = row["error"] is None
    return (
        row["label"],
        row["target"],
        row["triton"],
        _plain(row["registers"]),
        f"{row['spill_stores']}/{row['spill_loads']}" if compiled else MISSING,
        _kilobytes(row["shared_memory"]),
        ", ".join(row["tensor"]) or ("none, exact fp32" if _exact(row) else MISSING),
        _plain(row["buffers"]),
        _plain(row["loop_instructions"]),
        _plain(row.get("element_instructions")),
        MISSING if row["ceiling"] is None else f"{row['ceiling']:.0%}",
        "; ".join(row["problems"]) or "none",
    )


def _latest(records: Iterable[Record]) -> list[Record]:
    latest = {
        (row["family"], row["label"], row["target"], row["triton"]): row
        for row in records
        if row["kind"] == "aot"
    }
    return list(latest.values())


def _kinds(group: Sequence[Record]) -> str:
    """Return the tensor-core instructions, and how many exact float32 configurations use none."""
    names = sorted({name.split(" ")[0] for row in group for name in row["tensor"]})
    without = sum(_exact(row) and not row["tensor"] for row in group)
    return ", ".join([*names, *[f"none in {without} of exact fp32"] * (without > 0)]) or MISSING


def _exact(row: Record) -> bool:
    return bool(row["precision"] == "ieee")


def _span(group: Sequence[Record], field: str, percent: bool = False) -> str:
    # Records of older versions lack newer fields.
    values = [row[field] for row in group if row.get(field) is not None]
    if not values:
        return MISSING
    low, high = (f"{value:.0%}" if percent else f"{value:.0f}" for value in (min(values), max(values)))
    return low if low == high else f"{low} to {high}"


def _plain(value: float | None) -> str:
    return MISSING if value is None else f"{value:g}"


def _kilobytes(count: int | None) -> str:
    return MISSING if count is None else f"{count / 1024:.0f}"
