"""Goals: figures with a limit to reach (must) and an ambition (aim)."""

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
    """Return a "goal" record.

    Args:
        name: Description of the figure.
        value: Measured value.
        must: Limit: the goal is reached if value >= must, or value <= must with ``at_most``.
        aim: Ambition beyond the limit.
        unit: Unit of all three.
        environment: Description of the machine.
        at_most: Whether smaller is better.
        busy: Whether the machine was busy.
    """
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


def unmeasured_goal(
    name: str,
    reason: str,
    *,
    must: float,
    aim: float,
    unit: str,
    environment: dict[str, Any],
    at_most: bool = False,
) -> Record:
    """Return a "goal" record of a figure that was not measured here.

    Args:
        name: Description of the figure.
        reason: Why it was not measured.
        must: See ``goal``.
        aim: See ``goal``.
        unit: See ``goal``.
        environment: See ``goal``.
        at_most: See ``goal``.
    """
    fields = {"environment": environment, "goal": name, "value": None, "unit": unit, "must": must, "aim": aim}
    return stamp("goal", {**fields, "at_most": at_most, "passed": None, "busy": False, "reason": reason})
