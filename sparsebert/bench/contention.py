"""Contention for the CPU while a benchmark runs: cores used by other processes, and time spent waiting."""

from __future__ import annotations

import contextlib
import os
import time
from dataclasses import dataclass
from pathlib import Path

# Share of the time that our threads may wait for a core; medians tolerate this much.
MAX_WAITED = 0.05
# Oversubscription in cores, where the system does not report how long threads waited.
SLACK_CORES = 0.25
# Time taken by the hypervisor, in cores.
MAX_STOLEN = 0.05


@dataclass(frozen=True)
class Contention:
    """Other activity on the machine during a measurement; None where the system does not report it."""

    waited: float | None = None  # time our threads were ready but not running, in cores
    others: float | None = None  # cores kept busy by other processes
    stolen: float | None = None  # cores taken by the hypervisor
    load: float | None = None  # one-minute load average at the end
    cores: int = 1

    def reasons(self, threads: int) -> tuple[str, ...]:
        """Return why ``threads`` threads cannot be timed reliably; empty if they can."""
        reasons = []
        if self.waited is not None:
            share = self.waited / threads
            if share > MAX_WAITED:
                others = (
                    "" if self.others is None else f", others kept {self.others:.1f} of {self.cores} busy"
                )
                reasons.append(f"waited {share:.0%} of the time for a core{others}")
        elif self.others is not None and threads + self.others > self.cores + SLACK_CORES:
            reasons.append(f"others kept {self.others:.1f} of {self.cores} cores busy, {threads} needed here")
        if self.stolen is not None and self.stolen > MAX_STOLEN:
            reasons.append(f"the hypervisor took {self.stolen:.2f} cores away")
        return tuple(reasons)


@dataclass(frozen=True)
class Watch:
    """The system's CPU counters at one moment: ``Watch.start()``, then ``stop()`` returns the difference."""

    wall: float
    system: tuple[float, float] | None
    process: float
    waited: float | None

    @classmethod
    def start(cls) -> Watch:
        """Read the counters now."""
        return cls(time.perf_counter(), _system_seconds(), _process_seconds(), _waited_seconds())

    def stop(self, in_workers: float = 0.0) -> Contention:
        """Return the contention since ``start``.

        Args:
            in_workers: CPU seconds that our worker processes spent in the meantime.
        """
        now = Watch.start()
        wall = now.wall - self.wall
        waited = others = stolen = None
        if self.waited is not None and now.waited is not None and wall > 0:
            waited = max(0.0, (now.waited - self.waited) / wall)
        # Below this, the kernel's counters (10 ms ticks) are mostly rounding errors.
        if self.system is not None and now.system is not None and wall > 0.2:
            busy = now.system[0] - self.system[0] - (now.process - self.process) - in_workers
            others = max(0.0, busy / wall)
            stolen = max(0.0, (now.system[1] - self.system[1]) / wall)
        return Contention(waited, others, stolen, load_average(), usable_cores())


def load_average() -> float | None:
    """Return the one-minute load average; None where the system has none."""
    try:
        return round(os.getloadavg()[0], 2)
    except (AttributeError, OSError):
        return None


def usable_cores() -> int:
    """Return the number of cores this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _system_seconds(stat: Path = Path("/proc/stat")) -> tuple[float, float] | None:
    """Return seconds since boot for which our cores were (busy, stolen by the hypervisor); None off Linux."""
    try:
        lines = [line.split() for line in stat.read_text().splitlines()]
    except OSError:
        return None
    cores = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set()
    unread = {f"cpu{core}" for core in cores}
    busy = stolen = 0
    for name, *fields in (line for line in lines if line and line[0] in unread):
        user, nice, system, _idle, _iowait, irq, softirq, steal = map(int, fields[:8])
        busy += user + nice + system + irq + softirq
        stolen += steal
        unread.discard(name)
    tick = os.sysconf("SC_CLK_TCK")
    return None if unread or not cores else (busy / tick, stolen / tick)


def _waited_seconds(tasks: Path = Path("/proc/self/task")) -> float | None:
    """Return the seconds that threads of this process waited in the scheduler's queue; None off Linux."""
    waited = []
    for schedstat in tasks.glob("*/schedstat"):
        with contextlib.suppress(OSError, ValueError, IndexError):
            waited.append(int(schedstat.read_text().split()[1]) / 1e9)
    return sum(waited) if waited else None


def _process_seconds() -> float:
    """Return the CPU seconds of this process and of its finished children."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system
