"""Measurements in a process of their own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]


def measure(
    module: str, arguments: Sequence[str], variables: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """Run ``python -m module`` and return the JSON object that it prints.

    Args:
        module: Its name, such as ``benchmarks.selection``.
        arguments: Its command line.
        variables: Environment variables to add.

    Raises:
        RuntimeError: The process fails; the message holds the last line of its stderr.
    """
    command = [sys.executable, "-m", module, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **(variables or {})})
    if done.returncode:
        last = done.stderr.strip().splitlines()[-1:]
        raise RuntimeError(f"{module} {' '.join(arguments)} failed: {last[0] if last else 'no message'}")
    fields: dict[str, Any] = json.loads(done.stdout)
    return fields


def python_path(*first: Path) -> str:
    """Return a PYTHONPATH of ``first``, this checkout, and the present value."""
    paths = [*map(str, first), str(ROOT), str(ROOT / "kernels"), os.environ.get("PYTHONPATH", "")]
    return os.pathsep.join(paths).rstrip(os.pathsep)
