"""Resident memory of this process: now, and at its peak."""

from __future__ import annotations

import resource
import sys
from pathlib import Path

PROCESS = Path("/proc/self")


def peak_resident(process: Path = PROCESS) -> int:
    """Return the peak resident bytes of this process, since ``clear_peak`` if that succeeded."""
    status = _status("VmHWM", process)
    if status is not None:
        return status
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # Linux counts in kibibytes


def resident(process: Path = PROCESS) -> int:
    """Return the resident bytes of this process (the peak, where the system does not report them)."""
    now = _status("VmRSS", process)
    return peak_resident(process) if now is None else now


def clear_peak(process: Path = PROCESS) -> bool:
    """Reset the peak to the current size. Return whether the system could: only Linux can."""
    try:
        (process / "clear_refs").write_text("5")
    except OSError:
        return False
    return True


def _status(field: str, process: Path) -> int | None:
    try:
        lines = (process / "status").read_text().splitlines()
    except OSError:
        return None
    for line in lines:
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    return None
