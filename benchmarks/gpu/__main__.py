"""What is missing on this GPU, most telling first: `python -m benchmarks.gpu [--minutes 8] [--out FOLDER]`.

Records go to gpu.jsonl in the folder, one by one, so the call may be stopped at any time and another one goes
on where it ended. At its end it writes gpu.md (tables), gpu.png (achieved against possible) and configs/
(tuned configurations, to be copied to kernels/sparsebert_kernels/configs/).
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

RESULTS = ROOT / "benchmarks" / "results"
# What the reports at the end may take, and a worker that is past the deadline.
LAST_SECONDS = 20
GRACE_SECONDS = 15


def main() -> int:
    """Exit code 1: points failed; 2: bad input."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__.split("\n")[0])
    parser.add_argument("--minutes", type=float, default=8.0, help="of this call, reports included")
    parser.add_argument("--out", type=Path, help="folder of the records; build/gpu if not given")
    parser.add_argument("--only", action="append", choices=SECONDS, help="only points of this kind")
    parser.add_argument("--list", action="store_true", help="show the missing points and measure nothing")
    parser.add_argument(
        "--dry-run", action="store_true", help="tiny, on the CPU: finds errors, measures nothing"
    )
    options = parser.parse_args()
    folder = options.out or ROOT / "build" / ("gpu-dry-run" if options.dry_run else "gpu")
    if options.dry_run and RESULTS in (folder.resolve(), *folder.resolve().parents):
        parser.error(f"a dry run measures nothing: its records have no place in {folder}")
    session = Session(folder, options.dry_run)
    if options.list:
        print(*(point.key for point in session.missing()), sep="\n")
        return 0
    folder.mkdir(parents=True, exist_ok=True)
    stop = _stop_asked_for()
    supervise(session, time.time() + 60 * options.minutes - LAST_SECONDS, options.only or [], stop.is_set)
    if stop.is_set():
        print("interrupted; the next call goes on from here")

    from benchmarks.gpu.summary import write_summary

    write_summary(session)
    failed = [row for row in session.records() if row["kind"] == "gpu_failed"]
    print(f"{len(session.missing())} points missing, {len(failed)} failures; see {folder}")
    return 1 if failed else 0


def supervise(
    session: Session, until: float, only: list[str], stopped: Callable[[], bool] = lambda: False
) -> None:
    """Keep a worker going until it has nothing more to do, or the time is up."""
    session.end()  # what a call before this one was stopped at
    while time.time() < until and not stopped():
        code = _watch(session, _start(session, until, only), until, stopped)
        found = session.interrupted()
        if found is not None:
            point, began, limit = found
            session.end()
            if time.time() < until and not stopped():
                took = time.time() - began
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
    if session.dry_run:
        command.append("--dry-run")
        environment |= {"TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": ""}
    # A group of its own, to be ended with all that it has started.
    return subprocess.Popen(command, env=environment, cwd=ROOT, start_new_session=True)


def _stop_asked_for() -> threading.Event:
    """Set by an interrupt or a polite kill; an exception might come while the worker's lock is held."""
    stop = threading.Event()
    for name in (signal.SIGINT, signal.SIGTERM):
        signal.signal(name, lambda *_: stop.set())
    return stop


def _watch(
    session: Session, worker: subprocess.Popen[bytes], until: float, stopped: Callable[[], bool]
) -> int | None:
    """The exit code; a worker that hangs, or does not stop in time, is killed (None)."""
    try:
        while (code := worker.poll()) is None:
            found = session.interrupted()
            late = time.time() > until + GRACE_SECONDS
            if late or stopped() or (found is not None and time.time() > found[1] + found[2]):
                return None
            time.sleep(0.2)
        return code
    finally:
        if worker.poll() is None:
            os.killpg(worker.pid, signal.SIGKILL)
            worker.wait()


def _unknown(session: Session) -> dict[str, Any]:
    """Device and environment of a process that can no longer be asked: those of the record before."""
    before = session.records()[-1:]
    if before:
        return {name: before[0][name] for name in ("environment", "device")}
    return {"environment": None, "device": {"name": UNKNOWN_DEVICE, "dry_run": session.dry_run}}


if __name__ == "__main__":
    sys.exit(main())
