"""The measured roofline of a CPU: what each part of a model reaches of what the ceilings allow.

A "profile" record holds the useful FLOP, the compulsory bytes and the time of each part, and the ceilings of
its machine. No part can be faster than its FLOP at the peak of their precision, nor than its bytes at the
bandwidth: that of the last-level cache where the operands of one matrix fit into it, else that of memory.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from sparsebert.cost.precision import PRECISIONS
from sparsebert.report.format import (
    BUSY_NOTE,
    MISSING,
    Record,
    granularity_text,
    machine_key,
    machine_text,
    tolerance_text,
    workload_title,
)
from sparsebert.report.profile_tables import NAMES
from sparsebert.report.table import Table

# Parts with FLOP, in the order of a layer.
PARTS = ("qkv", "attention", "output", "up", "down")
# Of these names of sides, the first that a ticket has is its own in the picture.
SPARSE_SIDES = ("sparse, fused", "sparse")
BASELINES = ("dense, oneDNN", "dense, oneDNN bf16", "dense")
COMPUTE, CACHE, MEMORY = "compute", "last-level cache", "memory"


@dataclass(frozen=True)
class RooflinePoint:
    """One part of one side.

    Attributes:
        series: The side, with the sparsity of a sparse one.
        part: A name in ``PARTS``.
        precision: The precisions of its products, e.g. "fp32" or "int8, bf16".
        intensity: Useful FLOP per compulsory byte.
        rate: Useful FLOP/s.
        attainable: The most FLOP/s that the ceilings allow; None without a ceiling for its precision.
        bound: ``COMPUTE``, ``CACHE`` or ``MEMORY``; "" without such a ceiling.
        milliseconds: Its time in a batch.
        batch_milliseconds: The time of the batch.
        busy: Whether the machine was busy meanwhile.
    """

    series: str
    part: str
    precision: str
    intensity: float
    rate: float
    attainable: float | None
    bound: str
    milliseconds: float
    batch_milliseconds: float
    busy: bool

    @property
    def share(self) -> float | None:
        """Share of what the ceilings allow."""
        return None if self.attainable is None else self.rate / self.attainable


@dataclass(frozen=True)
class Roofline:
    """The profiles of one model, granularity, tolerance and machine, the latest of each side and ticket.

    Attributes:
        rows: Their records.
        elsewhere: Whether the records hold profiles of another machine.
    """

    rows: Sequence[Record]
    elsewhere: bool

    @property
    def title(self) -> str:
        """The layers in words, with the machine where there are several."""
        last = self.rows[-1]
        title = (
            f"{granularity_text(last['ticket'])}-sparse layers, {workload_title(last['workload'])}"
            f"{tolerance_text(last)}"
        )
        environment = last["environment"]
        machine = f"{environment['cpu']}, cores: {environment['cores']}, {environment['kernels']}"
        return f"{title} ({machine})" if self.elsewhere else title

    @property
    def ceilings(self) -> Record:
        """The ceilings of the latest profile."""
        ceilings: Record = self.rows[-1]["ceilings"]
        return ceilings

    @property
    def busy(self) -> bool:
        """Whether a part was measured on a busy machine."""
        return any(row["busy"] for row in self.rows)

    def points(self) -> list[RooflinePoint]:
        """Return the points of all sides, dense ones first, then by sparsity."""
        return [point for row in self.rows for point in _points(row)]

    def drawn(self) -> list[RooflinePoint]:
        """Return the points of the baselines and of the fastest sparse side of each ticket."""
        sides = {row["side"] for row in self.rows}
        sparse = next((name for name in SPARSE_SIDES if name in sides), "")
        rows = (row for row in self.rows if row["side"] in (*BASELINES, sparse))
        return [point for row in rows for point in _points(row) if point.attainable is not None]

    def notes(self) -> list[str]:
        """Return the machine, its ceilings, and what is counted, in sentences."""
        notes = [
            f"{machine_text(self.rows[-1]['environment'])}.",
            f"Ceilings, measured in the same process: {ceilings_text(self.ceilings)}.",
            "Useful FLOP: two for each kept weight and token without padding, and attention's products; not "
            "biases, activation functions, softmax or pruned weights. In int8 they are integer operations. "
            "Bytes: weights as stored, with their index, once a batch; inputs and outputs of each part.",
        ]
        if len({repr(row["ceilings"]["flops"]) for row in self.rows}) > 1:
            notes.append(
                "The profiles are of several runs: the lines are the last one's, each share its own."
            )
        if self.elsewhere:
            notes.append("The records hold another machine's profiles, which are kept apart.")
        if any(point.attainable is None for point in self.points()):
            notes.append(f"{MISSING}: no ceiling was measured for this precision.")
        if any(point.share is not None and round(100 * point.share) > 100 for point in self.points()):
            notes.append("Over 100%: faster than the products that set the ceiling, as clocks vary.")
        if self.busy:
            notes.append(BUSY_NOTE)
        return notes


def rooflines(records: Iterable[Record]) -> list[Roofline]:
    """Return a roofline for each workload, granularity, tolerance and machine of "profile" records.

    Profiles of earlier versions, without FLOP and ceilings, have none.
    """
    rows = [row for row in records if row["kind"] == "profile" and "ceilings" in row]
    groups: dict[tuple[object, ...], dict[tuple[str, str], Record]] = {}
    for row in rows:
        key = (
            machine_key(row),
            repr(sorted(row["workload"].items(), key=str)),
            granularity_text(row["ticket"]),
            tolerance_text(row),
        )
        # A dense side is the same for all tickets.
        ticket = "" if _is_dense(row) else f"{row['ticket']['sparsity']:.3f}"
        latest = groups.setdefault(key, {})
        latest.pop((row["side"], ticket), None)
        latest[row["side"], ticket] = row
    machines = {machine_key(row) for row in rows}
    return [Roofline(sorted(group.values(), key=_order), len(machines) > 1) for group in groups.values()]


def cpu_roofline_tables(records: Iterable[Record]) -> list[Table]:
    """Return a table for each roofline: a row for each side, a column for each part."""
    return [_table(each) for each in rooflines(records)]


def ceilings_text(ceilings: Record) -> str:
    """Return ceilings in words."""
    peaks = [
        f"{precision} {rate_text(ceilings['flops'][precision])} ({name})"
        for precision, name in ceilings["products"].items()
    ]
    streams = [f"memory {ceilings['read'] / 1e9:.0f} GB/s reading and {ceilings['copy'] / 1e9:.0f} copying"]
    if ceilings["cache_read"] is None:
        streams.append("the last-level cache is not known")
    else:
        size, read = ceilings["cache_bytes"] / 2**20, ceilings["cache_read"] / 1e9
        streams.append(f"last-level cache ({size:.0f} MiB) {read:.0f} GB/s reading")
    return "; ".join([*peaks, *streams])


def rate_text(flops: float) -> str:
    """Return FLOP/s as text, in the unit that suits them."""
    return f"{flops / 1e12:.2f} TFLOP/s" if flops >= 1e12 else f"{flops / 1e9:.0f} GFLOP/s"


def share_text(point: RooflinePoint) -> str:
    """Return the share of what the ceilings allow."""
    return MISSING if point.share is None else f"{point.share:.0%}"


def _table(roofline: Roofline) -> Table:
    series: dict[str, dict[str, RooflinePoint]] = {}
    for point in roofline.points():
        series.setdefault(point.series, {})[point.part] = point
    parts = [part for part in PARTS if any(part in points for points in series.values())]
    rows = tuple(
        (name, *(_cell(points[part]) if part in points else MISSING for part in parts))
        for name, points in series.items()
    )
    notes = [
        "Useful GFLOP/s, and their share of what the ceilings allow: "
        f"{COMPUTE} unless {CACHE} or {MEMORY} is named.",
        *roofline.notes(),
    ]
    return Table(
        f"Roofline: {roofline.title}", ("side", *(NAMES[part] for part in parts)), rows, tuple(notes)
    )


def _cell(point: RooflinePoint) -> str:
    doubt = "?" if point.busy else ""
    bound = "" if point.bound in (COMPUTE, "") else f" {point.bound}"
    return f"{point.rate / 1e9:.0f}{doubt} ({share_text(point)}{bound})"


def _is_dense(row: Record) -> bool:
    return str(row["side"]).startswith("dense")


def _order(row: Record) -> tuple[bool, float]:
    return not _is_dense(row), 0.0 if _is_dense(row) else row["ticket"]["sparsity"]


def _points(row: Record) -> Iterator[RooflinePoint]:
    """Yield the points of a side, in the order of ``PARTS``."""
    ceilings = row["ceilings"]
    series = row["side"] if _is_dense(row) else f"{row['side']}, {row['ticket']['sparsity']:.0%}"
    for part in PARTS:
        operations = [each for each in row["operations"] if each["part"] == part]
        flops = sum(each["flops"] for each in operations)
        milliseconds = row["parts_ms"][part]
        if not flops or milliseconds <= 0:
            continue
        limits = [_limits(each, ceilings) for each in operations]
        least, bound = None, ""
        if all(limit is not None for limit in limits):
            least = sum(max(limit.values()) for limit in limits if limit)
            totals = {
                name: sum(limit.get(name, 0.0) for limit in limits if limit)
                for name in (COMPUTE, CACHE, MEMORY)
            }
            bound = max(totals, key=totals.__getitem__)
        yield RooflinePoint(
            series,
            part,
            ", ".join(dict.fromkeys(each["precision"] for each in operations)),
            flops / sum(each["bytes"] for each in operations),
            flops / (milliseconds / 1e3),
            None if least is None else flops / least,
            bound,
            milliseconds,
            sum(row["parts_ms"].values()),
            row["busy"],
        )


def _limits(operation: Record, ceilings: Record) -> dict[str, float] | None:
    """Return the least seconds of an operation by what bounds it; None without a ceiling.

    Where the CPU computes a precision no faster than those above it, their ceiling holds.
    """
    if operation["precision"] not in PRECISIONS:
        return None
    above = PRECISIONS[: PRECISIONS.index(operation["precision"]) + 1]
    peaks = [ceilings["flops"][each] for each in above if each in ceilings["flops"]]
    if not peaks:
        return None
    cache = ceilings["cache_bytes"]
    cached = cache is not None and operation["bytes"] / operation["count"] <= cache
    bandwidth = ceilings["cache_read" if cached else "read"]
    return {
        COMPUTE: operation["flops"] / max(peaks),
        CACHE if cached else MEMORY: operation["bytes"] / bandwidth,
    }
