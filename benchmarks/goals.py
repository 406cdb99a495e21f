"""Goals: figures with a limit to reach (must) and an ambition (aim)."""

from __future__ import annotations

from typing import Any

from sparsebert.results import Record, stamp


def goal(
    name: str,
    value: float | None,
    *,
    must: float,
    aim: float,
    unit: str,
    environment: dict[str, Any],
    at_most: bool = False,
    busy: bool = False,
    reason: str | None = None,
) -> Record:
    """Return a "goal" record.

    Args:
        name: Description of the figure.
        value: Measured value; None if the figure was not measured here.
        must: Limit: the goal is reached if value >= must, or value <= must with ``at_most``.
        aim: Ambition beyond the limit.
        unit: Unit of all three.
        environment: Description of the machine.
        at_most: Whether smaller is better.
        busy: Whether the machine was busy.
        reason: Why the figure was not measured; with ``value`` None only.
    """
    fields: dict[str, Any] = {
        "environment": environment,
        "goal": name,
        "value": value,
        "unit": unit,
        "must": must,
        "aim": aim,
        "at_most": at_most,
        "passed": None if value is None else value <= must if at_most else value >= must,
        "busy": busy,
    }
    return stamp("goal", fields if value is not None else {**fields, "reason": reason})
