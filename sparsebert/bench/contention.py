"""Is the machine quiet enough to measure? Counts the cores that other processes kept busy meanwhile."""

from __future__ import annotations

import contextlib
import os
import time
from dataclasses import dataclass
from pathlib import Path

# Share of the time that our threads stood in the queue for a core. Medians stand a little of it.
MAX_WAITED = 0.05
# Cores wanted beyond those that exist, where the system does not tell how long we waited.
SLACK_CORES = 0.25
# Time stolen by the hypervisor, in cores.
MAX_STOLEN = 0.05


@dataclass(frozen=True)
class Contention:
    """What went on beside us: None where the system does not tell."""

    waited: float | None = None  # cores' worth of time our threads were ready to run and did not
    others: float | None = None  # cores kept busy by other processes
    stolen: float | None = None  # cores the hypervisor took away
    load: float | None = None  # one-minute load average at the end
    cores: int = 1

    def reasons(self, threads: int) -> tuple[str, ...]:
        """Why `threads` threads cannot be timed here; empty where they can."""
        found = []
        if self.waited is not None:
            share = self.waited / threads
            if share > MAX_WAITED:
                taken = "" if self.others is None else f", others kept {self.others:.1f} of {self.cores} busy"
                found.append(f"waited {share:.0%} of the time for a core{taken}")
        elif self.others is not None and threads + self.others > self.cores + SLACK_CORES:
            found.append(f"others kept {self.others:.1f} of {self.cores} cores busy, {threads} needed here")
        if self.stolen is not None and self.stolen > MAX_STOLEN:
            found.append(f"the hypervisor took {self.stolen:.2f} cores away")
        return tuple(found)


@dataclass(frozen=True)
class Watch:
    """Reads the system's CPU counters twice: `Watch.start()`, then `.stop()`."""

    wall: float
    system: tuple[float, float] | None
    own: float
    waited: float | None

    @classmethod
    def start(cls) -> Watch:
        return cls(time.perf_counter(), _system_seconds(), _own_seconds(), _waited_seconds())

    def stop(self, in_workers: float = 0.0) -> Contention:
        """`in_workers`: CPU seconds that worker processes of ours spent meanwhile."""
        now = Watch.start()
        wall = now.wall - self.wall
        waited = others = stolen = None
        if self.waited is not None and now.waited is not None and wall > 0:
            waited = max(0.0, (now.waited - self.waited) / wall)
        # Shorter than this the kernel's counters (10 ms ticks) are mostly rounding.
        if self.system is not None and now.system is not None and wall > 0.2:
            busy = now.system[0] - self.system[0] - (now.own - self.own) - in_workers
            others = max(0.0, busy / wall)
            stolen = max(0.0, (now.system[1] - self.system[1]) / wall)
        return Contention(waited, others, stolen, load_average(), usable_cores())


def load_average() -> float | None:
    """One-minute load average, None where the system has none."""
    try:
        return round(os.getloadavg()[0], 2)
    except (AttributeError, OSError):
        return None


def usable_cores() -> int:
    """Cores this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _system_seconds(stat: Path = Path("/proc/stat")) -> tuple[float, float] | None:
    """Seconds since boot that the cores we may use were (busy, stolen by the hypervisor); None off Linux."""
    try:
        lines = [line.split() for line in stat.read_text().splitlines()]
    except OSError:
        return None
    cores = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set()
    own = {f"cpu{core}" for core in cores}
    busy = stolen = 0
    for name, *fields in (line for line in lines if line and line[0] in own):
        user, nice, system, _idle, _iowait, irq, softirq, steal = map(int, fields[:8])
        busy += user + nice + system + irq + softirq
        stolen += steal
        own.discard(name)
    tick = os.sysconf("SC_CLK_TCK")
    return None if own or not cores else (busy / tick, stolen / tick)


def _waited_seconds(tasks: Path = Path("/proc/self/task")) -> float | None:
    """Seconds the threads of this process have stood in the scheduler's queue; None off Linux."""
    waited = []
    for schedstat in tasks.glob("*/schedstat"):
        with contextlib.suppress(OSError, ValueError, IndexError):
            waited.append(int(schedstat.read_text().split()[1]) / 1e9)
    return sum(waited) if waited else None


def _own_seconds() -> float:
    """CPU seconds of this process and of its children that ended."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system
