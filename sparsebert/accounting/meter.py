"""The meter of a run: it measures from its start to its end, over all sessions of a run that was killed."""

from __future__ import annotations

import contextlib
import json
import resource
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any

from sparsebert.accounting.energy import EnergyCounters, NotMeasuredError, open_counters
from sparsebert.accounting.process_memory import PROCESS, clear_peak, peak_resident
from sparsebert.accounting.usage import Usage
from sparsebert.atomic import write_text

# Seconds between two records of an unfinished run: the most that a kill loses of what it used.
SAVE_SECONDS = 30.0


class Meter:
    """Measures the block that it is entered for.

    A measurement that fails is left out, with its reason; the run goes on.

    Args:
        gpu: Whether the block computes on a GPU.
        saved: File for the usage of the unfinished run, where a later session goes on; deleted at the end.
        resumable: Whether a session can go on with what an earlier one has done. If not, what ``saved``
            holds is of another run and does not count.
        counters: Opens the energy counters; by default those of the machine.
        save_seconds: Seconds between two writes of ``saved``.
        process: Folder of this process in /proc.
    """

    def __init__(
        self,
        *,
        gpu: bool = False,
        saved: Path | None = None,
        resumable: Callable[[], bool] = lambda: True,
        counters: Callable[[], tuple[list[EnergyCounters], dict[str, str]]] | None = None,
        save_seconds: float = SAVE_SECONDS,
        process: Path = PROCESS,
    ) -> None:
        self._gpu, self._saved, self._resumable, self._process = gpu, saved, resumable, process
        self._open = counters or (lambda: open_counters(gpu=gpu))
        self._save_seconds = save_seconds
        self._earlier: Usage | None = None
        self._final: Usage | None = None
        # The thread reads counters too.
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Meter:
        """Start to measure."""
        if self._resumable():
            self._earlier = _read(self._saved)
        self._wall, self._cpu = time.perf_counter(), _cpu_seconds()
        self._process_peak = not clear_peak(self._process)
        self._peak = self._gpu_peak = 0
        self._cuda_seconds = 0.0
        self._started = self._cuda_event()
        if self._gpu:
            import torch

            for device in range(torch.cuda.device_count()):
                torch.cuda.reset_peak_memory_stats(device)
        self._counters, self._not_measured = self._open()
        self._joules: dict[str, float] = {}
        self._start_thread()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop. If the block raised, what it used stays in the file for a session that can go on."""
        self._ended.set()
        if self._thread is not None:
            self._thread.join()
        if kind is None:
            self._final = self.usage()
        if self._saved is None:
            return
        if kind is None or not self._resumable():
            with contextlib.suppress(OSError):
                self._saved.unlink(missing_ok=True)
            return
        # Refused input is not a session.
        if not issubclass(kind, ValueError):
            # A GPU that failed says so again; the error of the run is the one to see.
            with contextlib.suppress(RuntimeError):
                self.save()

    def usage(self) -> Usage:
        """Return what the block has used so far, or to its end, in all sessions."""
        if self._final is not None:
            return self._final
        if self._started is not None:
            ended = self._cuda_event()
            ended.synchronize()
            self._cuda_seconds = self._started.elapsed_time(ended) / 1e3
        return self._usage()

    def save(self) -> None:
        """Write what was used so far into the file of the unfinished run; without one, do nothing."""
        if self._saved is not None:
            self._write(self.usage())

    def _usage(self) -> Usage:
        """Return the usage, with the time of the GPU as it was last read: events belong to one thread."""
        self._sample()
        usage = Usage(
            time.perf_counter() - self._wall,
            _cpu_seconds() - self._cpu,
            self._cuda_seconds if self._gpu else None,
            self._peak,
            self._gpu_peak if self._gpu else None,
            self._process_peak,
            self._joules,
            self._not_measured,
        )
        return usage if self._earlier is None else self._earlier + replace(usage, resumed=1)

    def _sample(self) -> None:
        """Read the energy counters and the peaks."""
        with self._lock:
            for counters in list(self._counters):
                try:
                    self._joules = {**self._joules, **counters.read()}
                except NotMeasuredError as error:
                    # What was counted before the failure is less than what was used.
                    self._not_measured = {**self._not_measured, counters.device: str(error)}
                    self._counters.remove(counters)
            # Other code may reset the peaks: those of before count too.
            self._peak = max(self._peak, peak_resident(self._process))
            if self._gpu:
                import torch

                devices = range(torch.cuda.device_count())
                peak = sum(torch.cuda.max_memory_allocated(device) for device in devices)
                self._gpu_peak = max(self._gpu_peak, peak)

    def _start_thread(self) -> None:
        """Start the thread that reads counters before they wrap, and saves; without either, none."""
        intervals = [each.interval for each in self._counters]
        intervals += [self._save_seconds] if self._saved is not None else []
        interval = min(intervals, default=float("inf"))
        if interval == float("inf"):
            return

        def beat() -> None:
            due = time.monotonic() + self._save_seconds
            while not self._ended.wait(interval):
                if self._saved is not None and time.monotonic() >= due:
                    self._write(self._usage())
                    due = time.monotonic() + self._save_seconds
                else:
                    self._sample()

        self._thread = threading.Thread(target=beat, name="sparsebert-meter", daemon=True)
        self._thread.start()

    def _write(self, usage: Usage) -> None:
        assert self._saved is not None
        # A full disk ends a run at its results, not at this file.
        with contextlib.suppress(OSError):
            write_text(self._saved, json.dumps(usage.record()))

    def _cuda_event(self) -> Any:
        if not self._gpu:
            return None
        import torch

        if not torch.cuda.is_available():
            return None
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event


def _read(saved: Path | None) -> Usage | None:
    """Return the usage of earlier sessions; None without a file, or if it is damaged."""
    if saved is None:
        return None
    try:
        return Usage.of_record(json.loads(saved.read_text()))
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return None


def _cpu_seconds() -> float:
    """Return the CPU time of this process and of those that it has waited for."""
    parts = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(each.ru_utime + each.ru_stime for each in parts)
