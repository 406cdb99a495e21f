"""Goals of the GPU kernels, and their measured values."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from sparsebert.report.format import MISSING, Record, reached

BASE_SHAPES = ([2304, 768], [768, 768], [3072, 768], [768, 3072])


@dataclass(frozen=True)
class Goal:
    """A goal for the speed-up of some points.

    Attributes:
        name: Description.
        must: Limit.
        aim: Ambition.
        kind: Kind of the points.
        arguments: Arguments of the points.
        side: The side that is measured.
        against: The baseline.
    """

    name: str
    must: float
    aim: float
    kind: str
    arguments: dict[str, Any] = field(default_factory=dict)
    side: str = "panel"
    against: str = "cublas"

    def holds(self, row: Record) -> bool:
        """Return whether a record counts for this goal."""
        point = row["point"]
        matches = point["kind"] == self.kind and all(
            point.get(name) == value for name, value in self.arguments.items()
        )
        return matches and point.get("shape", BASE_SHAPES[0]) in BASE_SHAPES

    def value(self, row: Record) -> float | None:
        """Return the speed-up over the baseline; None if one of the two is missing."""
        times = row["us"]
        if self.side not in times or self.against not in times:
            return None
        return float(times[self.against]["median"] / times[self.side]["median"])


def _layer(name: str, block: list[int], sparsity: float, must: float, aim: float, **others: Any) -> Goal:
    arguments = {"block": block, "sparsity": sparsity, "tokens": 4096, "mode": "forward", "cold": False}
    against = others.pop("against", "cublas")
    return Goal(name, must, aim, "layer", {**arguments, **others}, against=against)


def _epilogue(name: str, must: float, aim: float, side: str, against: str) -> Goal:
    arguments = {"block": [64, 64], "sparsity": 0.9, "tokens": 4096}
    return Goal(name, must, aim, "activation", arguments, side, against)


GOALS = (
    _layer("64x64 blocks, 75 %, M = 4096", [64, 64], 0.75, 1.3, 1.8),
    _layer("64x64 blocks, 90 %, M = 4096", [64, 64], 0.9, 2.7, 3.6),
    _layer("64x64 blocks, 95 %, M = 4096", [64, 64], 0.95, 3.0, 3.7),
    _layer("128x128 blocks, 75 %, M = 4096", [128, 128], 0.75, 1.7, 2.2),
    _layer("128x128 blocks, 90 %, M = 4096", [128, 128], 0.9, 3.0, 3.9),
    _layer("32x32 blocks, 90 %, M = 4096", [32, 32], 0.9, 1.6, 2.2),
    _layer("16x16 blocks, 95 %, M = 4096", [16, 16], 0.95, 1.0, 1.2),
    _layer("packed panels with nothing pruned, h = 128", [128, 128], 0.0, 0.5, 0.65),
    _layer("dX + dW, 64x64 blocks, 90 %, M = 16384", [64, 64], 0.9, 2.0, 3.0, tokens=16384, mode="backward"),
    _epilogue("FFN up, 64x64 blocks, 90 %, M = 4096", 2.2, 3.4, "panel", "cublas"),
    _epilogue("FFN up with GELU, 64x64 blocks, 90 %, M = 4096", 2.2, 3.6, "panel gelu", "cublas + gelu"),
    Goal("masked matmul, M = 4096", 0.75, 0.9, "masked", {"tokens": 4096, "mode": "forward"}, "masked"),
    Goal("bitmap weights, 90 %, M = 4096", 0.95, 1.0, "bitmap", {"tokens": 4096, "sparsity": 0.9}, "bitmap"),
    _layer("torch BSR, 64x64 blocks, 90 %, M = 4096", [64, 64], 0.9, 1.5, 3.0, against="torch bsr"),
)
# Batch, share of heads and neurons removed, must, aim.
MODEL_GOALS = ((32, 0.0, 1.8, 2.6), (128, 0.0, 1.8, 2.6), (32, 0.5, 2.6, 3.8), (128, 0.5, 2.6, 3.8))
GROUPS_MUST, GROUPS_AIM = 0.95, 1.0
PLANNED_LEAST = 0.98
MEMORY_MUST, MEMORY_AIM = 0.11, 0.105


def goal_rows(rows: Sequence[Record]) -> Iterator[tuple[str, ...]]:
    """Yield (case, reached, must, aim, worst layer, verdict) of every goal with measurements."""
    for goal in GOALS:
        measured = [
            (value, row) for row in rows if goal.holds(row) and (value := goal.value(row)) is not None
        ]
        if measured:
            worst, where = min(measured, key=lambda pair: pair[0])
            mean = statistics.geometric_mean(value for value, _ in measured)
            shape = "x".join(map(str, where["point"]["shape"]))
            busy = any(row["busy"] for _, row in measured)
            yield _row(goal.name, mean, goal.must, goal.aim, f"{worst:.2f}x ({shape})", busy)
    yield from _groups(rows)
    yield from _models(rows)
    yield from _planned(rows)
    yield from _memory(rows)


def _groups(rows: Sequence[Record]) -> Iterator[tuple[str, ...]]:
    """Yield the goal of 64x8 groups against 64x64 blocks, compared layer by layer."""
    times: dict[str, dict[tuple[int, ...], float]] = {}
    goal = {name: _layer(name, block, 0.9, 0, 0) for name, block in (("g", [64, 8]), ("b", [64, 64]))}
    for name, each in goal.items():
        times[name] = {
            tuple(row["point"]["shape"]): row["us"]["panel"]["median"] for row in rows if each.holds(row)
        }
    ratios = {shape: times["b"][shape] / times["g"][shape] for shape in times["g"].keys() & times["b"].keys()}
    if ratios:
        worst = min(ratios, key=lambda shape: ratios[shape])
        shown = f"{ratios[worst]:.2f}x ({'x'.join(map(str, worst))})"
        mean = statistics.geometric_mean(ratios.values())
        name = "64x8 groups against 64x64 blocks, 90 %, M = 4096"
        yield _row(name, mean, GROUPS_MUST, GROUPS_AIM, shown, False)


def _models(rows: Sequence[Record]) -> Iterator[tuple[str, ...]]:
    """Yield the goals of whole models against the fastest dense one."""
    plain = [row for row in rows if row["point"]["kind"] == "model" and not row["point"].get("ragged")]
    for batch, removed, must, aim in MODEL_GOALS:
        for row in plain:
            point = row["point"]
            case = point["model"], point["batch"], point.get("removed", 0.0)
            if case == ("bert-base", batch, removed) and row["speedup"] is not None:
                name = f"BERT-base, 64x64 blocks, 90 %{removed_share(point)}, M = {row['tokens']}"
                against = f"against {row['against']}"
                yield _row(f"{name}, {against}", row["speedup"], must, aim, MISSING, row["busy"])


def removed_share(point: Record) -> str:
    """Return the share of heads and neurons that a model of a point lacks, after a comma; "" if none."""
    removed = point.get("removed")
    return f", {removed:.0%} of heads and neurons removed" if removed else ""


def _planned(rows: Sequence[Record]) -> Iterator[tuple[str, ...]]:
    """Yield the goal of the slowest planned layer; a plan tolerates a loss of two percent as noise."""
    planned = [row for row in rows if row["point"]["kind"] == "planned"]
    if planned:
        slowest = min(planned, key=lambda row: row["ratio"]["plan"]["median"])
        value, point = slowest["ratio"]["plan"]["median"], slowest["point"]
        where = f"{slowest['format']}, {'x'.join(map(str, point['shape']))}, M = {point['tokens']}"
        shown = f"{value:.2f}x{'?' if slowest['busy'] else ''}"
        verdict = reached(value >= PLANNED_LEAST)
        yield (
            f"slowest of {len(planned)} layers as planned",
            shown,
            "1x",
            "1x",
            f"{value:.2f}x ({where})",
            verdict,
        )


def _memory(rows: Sequence[Record]) -> Iterator[tuple[str, ...]]:
    for row in rows:
        if row["point"]["kind"] == "memory" and row["point"]["model"] == "bert-base":
            share = row["weight_bytes"] / row["dense_weight_bytes"]
            yield (
                "encoder weight bytes, 64x64 blocks, 90 %",
                f"{share:.3f}x",
                f"at most {MEMORY_MUST:g}x",
                f"{MEMORY_AIM:g}x",
                MISSING,
                reached(share <= MEMORY_MUST),
            )


def _row(name: str, value: float, must: float, aim: float, worst: str, busy: bool) -> tuple[str, ...]:
    shown = f"{value:.2f}x{'?' if busy else ''}"
    return name, shown, f"{must:g}x", f"{aim:g}x", worst, reached(value >= must)
