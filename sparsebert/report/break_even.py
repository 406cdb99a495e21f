"""Speed-up against sparsity: the dense form to compare with, and the sparsity from which pruning pays."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from sparsebert.report.format import Record, baseline_name, granularity_text, tolerance_text

# Backends that use the zeros, and so are not dense, or that are ours.
NOT_DENSE = ("sparse", "compact", "fused", "deepsparse")


@dataclass(frozen=True)
class Curve:
    """The speed-ups of one format over sparsity.

    Attributes:
        name: Granularity, with format and tolerance where they were requested.
        records: "bench" records of the sparse side, by rising sparsity; the latest of each.
    """

    name: str
    records: tuple[Record, ...]

    def points(self, reference: str) -> list[tuple[float, float]]:
        """Return sparsity in per cent and median speed-up of each record with a ratio to ``reference``."""
        return [
            (100 * row["ticket"]["sparsity"], row["ratio"][reference]["median"])
            for row in self.records
            if reference in row["ratio"]
        ]


def curves(records: Iterable[Record]) -> list[Curve]:
    """Return a curve for each format of the sparse sides."""
    groups: dict[str, dict[float, Record]] = {}
    for row in records:
        if row["kind"] == "bench" and row["provider"] == "sparse":
            forced = "" if row["format"] == "auto" else f", format {row['format']}"
            name = granularity_text(row["ticket"]) + forced + tolerance_text(row)
            groups.setdefault(name, {})[round(row["ticket"]["sparsity"], 4)] = row
    return [Curve(name, tuple(rows[share] for share in sorted(rows))) for name, rows in groups.items()]


def dense_reference(drawn: Sequence[Curve]) -> str | None:
    """Return the fastest dense form: of those timed beside most tickets, the one least outrun.

    The geometric mean over the tickets decides, so that a single disturbed measurement does not.
    """
    ratios: dict[str, list[float]] = {}
    for row in (row for curve in drawn for row in curve.records):
        for name, ratio in row["ratio"].items():
            if name not in NOT_DENSE:
                ratios.setdefault(name, []).append(math.log(ratio["median"]))
    most = max(map(len, ratios.values()), default=0)
    means = {name: sum(values) / most for name, values in ratios.items() if len(values) == most}
    return min(means, key=means.__getitem__, default=None)


def break_even(points: Sequence[tuple[float, float]]) -> float | None:
    """Return the sparsity at which the speed-up crosses 1; None if it never does from below.

    Interpolates between measured (sparsity, speed-up) points, linearly in the logarithm of the speed-up like
    the plot.
    """
    crossing = _crossing(points)
    return None if crossing is None else crossing[0]


def _crossing(points: Sequence[tuple[float, float]]) -> tuple[float, float, float] | None:
    """Return the break-even and the measured sparsities on its two sides."""
    for (low, below), (high, above) in itertools.pairwise(sorted(points)):
        if below < 1 <= above:
            return low - math.log(below) / math.log(above / below) * (high - low), low, high
    return None


def break_even_text(points: Sequence[tuple[float, float]]) -> str:
    """Return the break-even in words, with the measured sparsities that it lies between."""
    ordered = sorted(points)
    if (crossing := _crossing(ordered)) is not None:
        at, low, high = crossing
        return f"at {at:.0f} % (interpolated between {low:.0f} and {high:.0f} %)"
    (lowest, first), (highest, last) = ordered[0], ordered[-1]
    if last < 1:
        return f"not reached up to {highest:.0f} %, where it is {last:.2f}x"
    return f"below {lowest:.0f} %, the lowest measured, where it is {first:.2f}x"


def break_even_sentence(drawn: Sequence[Curve], environment: Mapping[str, str]) -> str | None:
    """Return the break-even of each format with the fastest dense form; None without a dense form."""
    reference = dense_reference(drawn)
    if reference is None:
        return None
    texts = [
        f"{curve.name} {break_even_text(points)}" for curve in drawn if (points := curve.points(reference))
    ]
    name = baseline_name(reference, dict(environment))
    return f"Break-even with the fastest dense form, {name}: {'; '.join(texts)}."
