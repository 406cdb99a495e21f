"""The meter: what a block used, over all sessions, whatever cannot be measured."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sparsebert.accounting.energy import EnergyCounters, NotMeasuredError
from sparsebert.accounting.meter import Meter
from sparsebert.accounting.process_memory import PROCESS, clear_peak, peak_resident
from sparsebert.accounting.usage import Usage

MEGABYTE = 1_000_000


class Counting:
    """Counters that add a joule at each read, and fail at one of them."""

    device = "cpu"

    def __init__(self, interval: float = float("inf"), fails_at: int | None = None) -> None:
        self.interval, self._fails_at, self.reads = interval, fails_at, 0

    def read(self) -> Mapping[str, float]:
        self.reads += 1
        if self.reads == self._fails_at:
            raise NotMeasuredError("the counter is gone")
        return {"package-0": float(self.reads)}


def opened(*counters: EnergyCounters) -> Any:
    return lambda: ([*counters], {} if counters else {"cpu": "no counters"})


def quiet(**options: Any) -> Meter:
    return Meter(**{"counters": opened(), **options})


def test_a_block_has_its_times() -> None:
    with quiet() as meter:
        before = time.process_time()
        while time.process_time() < before + 0.05:
            pass
        used = meter.usage()
    assert used.cpu_seconds >= 0.05
    assert used.wall_seconds >= used.cpu_seconds / 2  # of few threads
    assert (used.cuda_seconds, used.peak_gpu_bytes, used.resumed) == (None, None, 0)


def test_the_cpu_time_of_finished_child_processes_counts() -> None:
    with quiet() as meter:
        busy = "import time\nwhile time.process_time() < 0.2: pass"
        subprocess.run([sys.executable, "-c", busy], check=True)
        assert meter.usage().cpu_seconds >= 0.2


@pytest.mark.skipif(not PROCESS.exists(), reason="the peak is reset in /proc")
def test_the_peak_is_that_of_the_block() -> None:
    with quiet() as first:
        held = np.ones(40 * MEGABYTE, np.int8)
        del held
        large = first.usage()
    with quiet() as second:
        small = second.usage()
    assert large.peak_rss_bytes is not None
    assert small.peak_rss_bytes is not None
    assert small.peak_rss_bytes < large.peak_rss_bytes - 30 * MEGABYTE
    assert not small.process_peak


def test_without_proc_the_peak_is_that_of_the_process_and_it_is_said(tmp_path: Path) -> None:
    nowhere = tmp_path / "proc"
    with quiet(process=nowhere) as meter:
        used = meter.usage()
    unit = 1 if sys.platform == "darwin" else 1024
    assert used.peak_rss_bytes == resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    assert used.process_peak
    assert not clear_peak(nowhere)
    assert peak_resident(nowhere) == used.peak_rss_bytes


def test_nothing_counts_after_the_end() -> None:
    with quiet() as meter:
        pass
    assert meter.usage() is meter.usage()


class TestEnergy:
    def test_counters_are_read_at_the_end(self) -> None:
        with quiet(counters=opened(Counting())) as meter:
            assert meter.usage().joules == {"package-0": 1.0}

    def test_counters_that_wrap_are_read_meanwhile(self) -> None:
        counting = Counting(interval=0.01)
        with quiet(counters=opened(counting)):
            deadline = time.monotonic() + 10
            while counting.reads < 3 and time.monotonic() < deadline:
                time.sleep(0.01)
        assert counting.reads >= 3

    def test_a_counter_that_fails_leaves_what_it_counted_and_the_reason(self) -> None:
        with quiet(counters=opened(Counting(fails_at=2))) as meter:
            meter.usage()
            used = meter.usage()
            assert meter.usage().joules == used.joules == {"package-0": 1.0}
        assert used.not_measured == {"cpu": "the counter is gone"}

    def test_a_machine_without_counters_has_no_thread(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("threading.Thread", lambda *_, **__: pytest.fail("a thread was started"))
        with quiet() as meter:
            used = meter.usage()
        assert used.energy is None
        assert used.not_measured == {"cpu": "no counters"}


class Death(BaseException):
    """The death of a process that still runs its handlers."""


def test_it_costs_little_enough_to_be_always_on(tmp_path: Path) -> None:
    """Less than 1 % of a second's run, and of the time between two records of a long one."""
    costs = []
    for _ in range(5):
        before = time.thread_time()
        with quiet(saved=tmp_path / "usage.json", counters=opened(Counting())) as meter:
            meter.save()
        costs.append(time.thread_time() - before)
    assert min(costs) < 0.01


class TestSessions:
    def test_what_a_session_that_ended_early_used_is_counted_once(self, tmp_path: Path) -> None:
        saved = tmp_path / "usage.json"

        def session() -> None:
            with quiet(saved=saved, counters=opened(Counting())) as meter:
                time.sleep(0.05)
                meter.save()
                raise Death

        with pytest.raises(Death):
            session()
        first = Usage.of_record(json.loads(saved.read_text()))
        with quiet(saved=saved, counters=opened(Counting())) as meter:
            used = meter.usage()
        assert 0.05 <= first.wall_seconds <= used.wall_seconds < first.wall_seconds + 1
        assert used.joules["package-0"] == first.joules["package-0"] + 1.0
        assert used.resumed == 1
        assert not saved.exists()

    def test_a_killed_session_counts_as_far_as_it_was_recorded(self, tmp_path: Path) -> None:
        saved = tmp_path / "usage.json"
        program = (
            "import os, signal, sys, time\n"
            "from pathlib import Path\n"
            "from sparsebert.accounting.meter import Meter\n"
            "with Meter(saved=Path(sys.argv[1]), save_seconds=0.02):\n"
            "    while not Path(sys.argv[1]).exists(): time.sleep(0.01)\n"
            "    os.kill(os.getpid(), signal.SIGKILL)\n"
        )
        assert subprocess.run([sys.executable, "-c", program, str(saved)]).returncode == -9
        with quiet(saved=saved) as meter:
            used = meter.usage()
        assert used.wall_seconds >= 0.02
        assert used.resumed == 1

    def test_a_run_that_starts_over_does_not_count_another_s_sessions(self, tmp_path: Path) -> None:
        saved = tmp_path / "usage.json"
        saved.write_text(json.dumps(Usage(1000.0).record()))
        with quiet(saved=saved, resumable=lambda: False) as meter:
            assert meter.usage().wall_seconds < 1000

    def test_a_refused_run_leaves_no_file(self, tmp_path: Path) -> None:
        saved = tmp_path / "usage.json"

        def session() -> None:
            with quiet(saved=saved, resumable=lambda: False) as meter:
                meter.save()
                raise ValueError("refused")

        with pytest.raises(ValueError, match="refused"):
            session()
        assert not saved.exists()

    def test_a_refused_continuation_is_not_a_session(self, tmp_path: Path) -> None:
        saved = tmp_path / "usage.json"
        saved.write_text(before := json.dumps(Usage(1000.0).record()))
        with pytest.raises(ValueError, match="another healing"), quiet(saved=saved):
            raise ValueError("the checkpoint of another healing")
        assert saved.read_text() == before

    @pytest.mark.parametrize("content", ["", "{", "[]", '{"wall_seconds": "long"}'])
    def test_a_damaged_file_counts_nothing(self, content: str, tmp_path: Path) -> None:
        saved = tmp_path / "usage.json"
        saved.write_text(content)
        with quiet(saved=saved) as meter:
            assert meter.usage().resumed == 0

    def test_a_disk_that_is_full_does_not_end_the_run(self, tmp_path: Path) -> None:
        with quiet(saved=tmp_path / "missing" / "usage.json") as meter:
            meter.save()
            assert meter.usage().wall_seconds >= 0


def test_the_time_of_a_gpu_is_between_events(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]

    class Event:
        def __init__(self, enable_timing: bool) -> None:
            assert enable_timing

        def record(self) -> None:
            self.at = clock[0]

        def synchronize(self) -> None:
            pass

        def elapsed_time(self, end: Event) -> float:
            return 1e3 * (end.at - self.at)

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda device: None)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: 100 * (device + 1))
    with quiet(gpu=True) as meter:
        clock[0] = 2.5
        used = meter.usage()
    assert (used.cuda_seconds, used.peak_gpu_bytes) == (2.5, 300)
