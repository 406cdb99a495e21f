"""Figures with a limit: what is reached, what must be, what is aimed at."""

from __future__ import annotations

from typing import Any

from sparsebert.results import Record, stamp


def goal(
    name: str,
    value: float,
    *,
    must: float,
    aim: float,
    unit: str,
    environment: dict[str, Any],
    at_most: bool = False,
    busy: bool = False,
) -> Record:
    """A "goal" record. Reached means value >= must, or value <= must where `at_most`."""
    return stamp(
        "goal",
        {
            "environment": environment,
            "goal": name,
            "value": value,
            "unit": unit,
            "must": must,
            "aim": aim,
            "at_most": at_most,
            "passed": value <= must if at_most else value >= must,
            "busy": busy,
        },
    )
