"""Error curves: what pruning one matrix alone costs the model, against the density of the matrix."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

from sparsebert.atomic import replacing
from sparsebert.json_object import read_json_object

# Densities at which curves that serve every sparsity are measured.
FIXED_DENSITIES = (0.04, 0.1, 0.25, 0.6)
_TINY = 1e-30


class _Line(NamedTuple):
    """The logarithm of the error over an interval of densities.

    Attributes:
        end: The interval's upper end.
        level: Logarithm of the error at density 0, if the line went on.
        slope: Its change with density; at most 0.
    """

    end: float
    level: float
    slope: float


@dataclass(frozen=True)
class ErrorCurve:
    """What pruning one matrix alone costs the model, against the density of the matrix.

    The logarithm of the error is close to a straight line over the density: lines join the measured points,
    and the outer ones go on.

    Attributes:
        lines: The lines between neighbouring points, by density.
    """

    lines: tuple[_Line, ...]

    @classmethod
    def through(cls, *points: Sequence[float]) -> ErrorCurve:
        """Return the curve through two or more points (density, error), by density."""
        lines = []
        for (low, more), (high, less) in pairwise(points):
            slope = (math.log(max(less, _TINY)) - math.log(max(more, _TINY))) / (high - low)
            slope = min(slope, 0.0)
            lines.append(_Line(high, math.log(max(less, _TINY)) - slope * high, slope))
        return cls(tuple(lines))

    def at(self, density: float) -> float:
        """Return the error at a density; 0 at density 1."""
        line = next((line for line in self.lines if density <= line.end), self.lines[-1])
        return 0.0 if density >= 1 else math.exp(line.level + line.slope * density)


class ErrorCurves:
    """What pruning each matrix alone costs one model: measured by the first call that needs it, then read.

    For several calls of :func:`sparsebert.prune_` with the same model, data and granularity.

    Args:
        file: JSON file that keeps the measurements; None keeps them in memory.
    """

    def __init__(self, file: Path | None = None) -> None:
        self._file = file
        self._saved: dict[str, Any] = read_json_object(file) if file is not None and file.exists() else {}

    @property
    def is_empty(self) -> bool:
        """Whether nothing has been measured yet."""
        return not self._saved

    def points(
        self, run: Mapping[str, Any], measure: Callable[[], Mapping[str, Sequence[Sequence[float]]]]
    ) -> dict[str, list[list[float]]]:
        """Return what was measured of each matrix.

        Args:
            run: Model, data and granularity, JSON values.
            measure: Measures.

        Raises:
            ValueError: The measurements are of another model, other data or another granularity.
        """
        described = json.loads(json.dumps(run))
        if self.is_empty:
            points = {key: [list(point) for point in each] for key, each in measure().items()}
            self._saved = {"run": described, "points": points}
            if self._file is not None:
                with replacing(self._file) as unfinished:
                    unfinished.write_text(json.dumps(self._saved))
        if self._saved.get("run") != described:
            raise ValueError(
                "the error curves are of another model, other data or another granularity: pass new ones"
            )
        points = self._saved["points"]
        return points
