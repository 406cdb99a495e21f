"""Tables of one-shot pruning."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from statistics import median

from sparsebert.linear_layers import type_of
from sparsebert.report.table import Table


def error_table(errors: Mapping[str, float]) -> Table:
    """Return the table of what pruning has cost, by kind of matrix.

    Args:
        errors: Key of a matrix -> share of its outputs' energy that is lost.
    """
    kinds: dict[str, list[float]] = defaultdict(list)
    for key, error in errors.items():
        kinds[type_of(key)].append(error)
    rows = [
        (kind, str(len(shares)), f"{median(shares):.1%}", f"{max(shares):.1%}")
        for kind, shares in kinds.items()
    ]
    return Table(
        "Outputs lost on the calibration texts (share of their energy)",
        ("matrix", "count", "median", "highest"),
        tuple(rows),
    )
