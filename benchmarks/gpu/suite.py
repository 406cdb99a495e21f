"""The project's own tests on the GPU, and a few of them under compute-sanitizer."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from typing import Any

from benchmarks.fresh_process import ROOT, python_path
from benchmarks.gpu.device import Device
from benchmarks.gpu.session import MeasuredFailureError

LIMIT_SECONDS = 300
# Most of the time, the tests compile kernels: a process a core, as far as the GPU's memory carries them.
PROCESSES = 8
TAIL = 3000
# These run every kernel once; the sanitizer is a hundred times slower.
SANITIZED = "stride or residual or no_rows or without_a_token or decompression"


def measure_tests(device: Device, *, path: str, marker: str = "") -> dict[str, Any]:
    """Run the tests under ``path`` in parallel: those with a marker, else all but slow ones and the like.

    Raises:
        MeasuredFailureError: A test fails, none is found, or they take too long.
    """
    selected = marker or "not slow and not real_data and not packaging"
    files = _marked_files(path, marker) if marker else [path]
    return _pytest(device, [], [*_processes(), *files, "-m", selected])


def measure_sanitizer(device: Device, *, path: str) -> dict[str, Any]:
    """Run a few tests with every memory access checked; returns a note if the tool is not installed.

    Raises:
        MeasuredFailureError: As ``measure_tests``, or an access is out of bounds.
    """
    tool = shutil.which("compute-sanitizer")
    if tool is None:
        return {"passed": None, "note": "compute-sanitizer is not installed here"}
    command = [tool, "--tool", "memcheck", "--error-exitcode", "9", "--print-limit", "20"]
    return _pytest(device, command, [path, "-m", "not slow", "-k", SANITIZED])


def _marked_files(path: str, marker: str) -> list[str]:
    """Return the files of tests with a marker: to collect all others would take longer than to run these."""
    files = sorted((ROOT / path).rglob("test_*.py"))
    return [str(file.relative_to(ROOT)) for file in files if f"mark.{marker}" in file.read_text()]


def _processes() -> list[str]:
    return ["-n", str(PROCESSES)] if importlib.util.find_spec("xdist") else []


def _pytest(device: Device, wrapper: list[str], arguments: list[str]) -> dict[str, Any]:
    if device.dry_run:
        arguments = ["--collect-only", *arguments]
    command = [*wrapper, sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *arguments]
    try:
        done = subprocess.run(
            command,
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": python_path()},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=LIMIT_SECONDS,
        )
        code, output = done.returncode, done.stdout
    except subprocess.TimeoutExpired as expired:
        code, output = None, (expired.stdout or b"").decode(errors="replace")
    matches = re.findall(r"(\d+) (passed|failed|skipped|error)", output)
    counts = {name: int(number) for number, name in matches}
    fields = {"passed": code == 0, "exit": code, "counts": counts, "output": output[-TAIL:]}
    if code == 0:
        return fields
    raise MeasuredFailureError(_reason(code, counts), fields)


def _reason(code: int | None, counts: dict[str, int]) -> str:
    if code is None:
        return f"the tests take more than {LIMIT_SECONDS} s"
    if code == 5:
        return "no test was found"
    red = ", ".join(f"{counts[name]} {name}" for name in ("failed", "error") if name in counts)
    return f"{red or 'the tests do not run'} (pytest ends with exit code {code})"
