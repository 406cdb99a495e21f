"""A call of the benchmark: the missing points, and their measurement until the time is up."""

from __future__ import annotations

import json
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.gpu.points import Point, queue, tiny
from sparsebert.atomic import write_text
from sparsebert.results import Record, append, read, stamp
from sparsebert_kernels.errors import first_line

RESULTS = "gpu.jsonl"
CURRENT = ".current.json"
UNKNOWN_DEVICE = "unknown"
# Kinds of records: of a measured point, of a failed one, and of one at which a call was killed or hung.
MEASURED, FAILED, KILLED = "gpu", "gpu_failed", "gpu_killed"
ATTEMPTS = 2  # failures after which a point is skipped
# A point hangs if it takes this many times its estimate.
HANGS_AFTER = 6


class MeasuredFailureError(Exception):
    """A point that ran and found a failure, such as red tests.

    Attributes:
        fields: Fields of its record.
    """

    def __init__(self, reason: str, fields: dict[str, Any]) -> None:
        super().__init__(reason)
        self.fields = fields


@dataclass(frozen=True)
class Session:
    """A folder of records."""

    folder: Path
    dry_run: bool = False

    @property
    def results(self) -> Path:
        return self.folder / RESULTS

    @property
    def current(self) -> Path:
        """File that names the point being measured, in case the process dies."""
        return self.folder / CURRENT

    def points(self) -> list[Point]:
        return tiny() if self.dry_run else queue()

    def records(self) -> list[Record]:
        return read(self.results) if self.results.exists() else []

    def missing(self, device_name: str | None = None) -> list[Point]:
        """Return the points without a record of this device, except those that failed too often.

        Points at which a call was killed come last: one that hangs does not keep the others from being
        measured.
        """
        return missing(self.points(), self.records(), device_name)

    def failures(self) -> list[Record]:
        """Return the last failure of each point that has failed on a device and never been measured there."""
        last: dict[tuple[str, str], Record] = {}
        for row in self.records():
            key = row["device"]["name"], row["point"]["key"]
            measured = last.get(key, row)["kind"] == MEASURED
            if row["kind"] in (MEASURED, FAILED) and not (measured and row["kind"] == FAILED):
                last[key] = row
        return [row for row in last.values() if row["kind"] == FAILED]

    def measured(self, point: Point, fields: dict[str, Any]) -> None:
        append(self.results, [stamp(MEASURED, {"point": _named(point), **fields})])

    def failed(self, point: Point, reason: str, fields: dict[str, Any]) -> None:
        append(self.results, [stamp(FAILED, {"point": _named(point), "reason": reason, **fields})])

    def killed(self, point: Point, fields: dict[str, Any]) -> None:
        append(self.results, [stamp(KILLED, {"point": _named(point), **fields})])

    def begin(self, point: Point) -> None:
        text = json.dumps({**asdict(point), "began": time.time(), "limit": HANGS_AFTER * point.seconds})
        write_text(self.current, text)

    def end(self) -> None:
        self.current.unlink(missing_ok=True)

    def interrupted(self) -> tuple[Point, float, float] | None:
        """Return the point being measured, its start time and the seconds it may take; None without one."""
        try:
            current = json.loads(self.current.read_text())
        except (OSError, ValueError):
            return None
        arguments = tuple(
            (name, tuple(value) if isinstance(value, list) else value) for name, value in current["arguments"]
        )
        return Point(current["kind"], arguments), current["began"], current["limit"]


def missing(points: Sequence[Point], records: Iterable[Record], device_name: str | None) -> list[Point]:
    """Return missing points, see ``Session.missing``; None for ``device_name`` accepts any device."""
    done: set[str] = set()
    failures: Counter[str] = Counter()
    kills: Counter[str] = Counter()
    for row in records:
        if device_name is not None and row["device"]["name"] not in (device_name, UNKNOWN_DEVICE):
            continue
        if row["kind"] == MEASURED:
            done.add(row["point"]["key"])
        elif row["kind"] == FAILED:
            failures[row["point"]["key"]] += 1
        elif row["kind"] == KILLED:
            kills[row["point"]["key"]] += 1
    left = [each for each in points if each.key not in done and failures[each.key] < ATTEMPTS]
    return sorted(left, key=lambda each: kills[each.key])


def measure_all(
    session: Session,
    points: Sequence[Point],
    measure: Callable[[Point], dict[str, Any]],
    always: Callable[[], dict[str, Any]],
    until: float,
    *,
    alive: Callable[[], bool] = lambda: True,
    say: Callable[[str], None] = print,
    clock: Callable[[], float] = time.time,
) -> bool:
    """Measure the points in order, as far as they fit into the time; failures are recorded.

    Args:
        session: Receives the records.
        points: The points.
        measure: Returns the fields of a point's record.
        always: Returns the fields of all records.
        until: Time to stop, by ``clock``.
        alive: Asked after a failure, whether the device still works in this process.
        say: Called with a line for each point.
        clock: Returns seconds.

    Returns:
        False if the device can no longer be used by this process.
    """
    for number, point in enumerate(points, start=1):
        left = until - clock()
        if left <= 0:
            break
        if left < point.seconds:
            continue  # a later point may still fit
        session.begin(point)
        began = clock()
        try:
            fields = measure(point)
            session.measured(point, {**always(), **fields, "seconds": round(clock() - began, 1)})
            say(f"{number}/{len(points)} {point.key}: {_gist(fields)}")
        except Exception as problem:  # kernels, baselines and torch may fail in any way
            reason = "".join(traceback.format_exception_only(problem)).strip()[:500]
            details = {"traceback": traceback.format_exc()[-1500:]}
            if isinstance(problem, MeasuredFailureError):
                reason, details = str(problem), problem.fields
            session.failed(point, reason, {**always(), **details})
            say(f"{number}/{len(points)} {point.key}: FAILED {first_line(reason)}")
            if not alive():
                session.end()
                return False
        session.end()
    return True


def _named(point: Point) -> dict[str, Any]:
    return {"key": point.key, "kind": point.kind, **dict(point.arguments)}


def _gist(fields: dict[str, Any]) -> str:
    ratios = fields.get("ratio", {})
    if fields.get("speedup"):
        return f"{fields['speedup']:.2f}x against {fields['against']}"
    if fields.get("side") in ratios:
        return f"{ratios[fields['side']]['median']:.2f}x"
    return str(fields.get("counts") or fields.get("best") or "done")
