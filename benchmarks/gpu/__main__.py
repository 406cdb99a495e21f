"""Measure the missing points on this GPU: `python -m benchmarks.gpu [--minutes 9.2] [--out FOLDER]`.

The command appends records to gpu.jsonl in the folder one by one, so it may be stopped at any time, and
another call continues. At the end it writes gpu.md (tables), gpu.png (achieved against possible) and configs/
(tuned configurations, to copy to kernels/sparsebert_kernels/configs/).
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.fresh_process import ROOT, python_path
from benchmarks.gpu.points import SECONDS
from benchmarks.gpu.session import UNKNOWN_DEVICE, Session
from sparsebert_kernels.cuda import interpreter

RESULTS = ROOT / "benchmarks" / "results"
# Before a call of ten minutes begins to count, torch is imported twice.
MINUTES = 9.2
# Time for the summary at the end, and for a worker after the deadline.
LAST_SECONDS = 20
GRACE_SECONDS = 15
# A point that the end of a call cuts off hangs, perhaps, if it has taken this many times its estimate.
LATE_AFTER = 2


def main() -> int:
    """Return exit code 1 if points failed, red tests among them, 2 for bad input."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__.split("\n")[0])
    parser.add_argument("--minutes", type=float, default=MINUTES, help="duration, including the summary")
    parser.add_argument("--out", type=Path, help="folder of the records (default: build/gpu)")
    parser.add_argument("--only", action="append", choices=SECONDS, help="only points of this kind")
    parser.add_argument("--list", action="store_true", help="list the missing points and measure nothing")
    parser.add_argument(
        "--dry-run", action="store_true", help="run tiny inputs on the CPU; finds errors, measures nothing"
    )
    options = parser.parse_args()
    # The worker runs in another folder.
    folder = (options.out or ROOT / "build" / ("gpu-dry-run" if options.dry_run else "gpu")).resolve()
    if options.dry_run and RESULTS in (folder, *folder.parents):
        parser.error(f"a dry run measures nothing and must not write to {folder}; choose another folder")
    if options.dry_run and (reason := interpreter.why_broken()):
        print(f"skipped: {reason}")
        return 0
    session = Session(folder, options.dry_run)
    if options.list:
        print(*(point.key for point in session.missing()), sep="\n")
        return 0
    folder.mkdir(parents=True, exist_ok=True)
    stop = _stop_on_signal()
    supervise(session, time.time() + 60 * options.minutes - LAST_SECONDS, options.only or [], stop.is_set)
    if stop.is_set():
        print("interrupted; the next call continues")

    from benchmarks.gpu.summary import write_summary

    write_summary(session)
    failed = session.failures()
    print(f"{len(session.missing())} points missing, {len(failed)} failures; see {folder}")
    return 1 if failed else 0


def supervise(
    session: Session, until: float, only: list[str], stopped: Callable[[], bool] = lambda: False
) -> None:
    """Start workers until all points are measured or the time is up."""
    if (left := session.interrupted()) is not None:  # an earlier call was killed at this point
        session.killed(left[0], _unknown(session))
        session.end()
    while time.time() < until and not stopped():
        code = _watch(session, _start(session, until, only), until, stopped)
        interrupted = session.interrupted()
        if interrupted is not None:
            point, began, limit = interrupted
            session.end()
            took = time.time() - began
            if stopped() or time.time() >= until:
                if took > LATE_AFTER * point.seconds:
                    session.killed(point, _unknown(session))
            else:
                reason = f"hung for {took:.0f} s" if took > limit else f"the process died (exit code {code})"
                session.failed(point, reason, _unknown(session))
        elif code == 0:
            return
        elif code not in (None, 3):
            raise SystemExit(f"the measuring process fails before its first point (exit code {code})")


def _start(session: Session, until: float, only: list[str]) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "benchmarks.gpu.worker", "--out", str(session.folder)]
    command += ["--until", str(until), *(word for kind in only for word in ("--only", kind))]
    environment = {**os.environ, "PYTHONPATH": python_path(), "HF_HUB_OFFLINE": "1"}
    environment["PYTHONUNBUFFERED"] = "1"  # a worker that is killed would take its last lines along
    if session.dry_run:
        command.append("--dry-run")
        environment |= {"TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": ""}
    # A process group of its own, so that it can be killed with its children.
    return subprocess.Popen(command, env=environment, cwd=ROOT, start_new_session=True)


def _stop_on_signal() -> threading.Event:
    """Return an event that SIGINT and SIGTERM set; an exception might arrive while a lock is held."""
    stop = threading.Event()
    for name in (signal.SIGINT, signal.SIGTERM):
        signal.signal(name, lambda *_: stop.set())
    return stop


def _watch(
    session: Session, worker: subprocess.Popen[bytes], until: float, stopped: Callable[[], bool]
) -> int | None:
    """Wait for a worker and return its exit code; None if it hangs or is late and is killed."""
    try:
        while (code := worker.poll()) is None:
            running = session.interrupted()
            late = time.time() > until + GRACE_SECONDS
            if late or stopped() or (running is not None and time.time() > running[1] + running[2]):
                return None
            time.sleep(0.2)
        return code
    finally:
        if worker.poll() is None:
            os.killpg(worker.pid, signal.SIGKILL)
            worker.wait()


def _unknown(session: Session) -> dict[str, Any]:
    """Return device and environment of a dead process: those of the previous record."""
    previous = session.records()[-1:]
    if previous:
        return {name: previous[0][name] for name in ("environment", "device")}
    return {"environment": None, "device": {"name": UNKNOWN_DEVICE, "dry_run": session.dry_run}}


if __name__ == "__main__":
    sys.exit(main())
