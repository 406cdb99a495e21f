"""Contention: what others and the hypervisor took while we measured."""

import os

import pytest

from sparsebert.bench import contention
from sparsebert.bench.contention import Contention, Watch


def test_waiting_for_a_core_gives_a_reason_with_the_share():
    (reason,) = Contention(waited=0.4, others=1.6, cores=2).reasons(threads=2)
    assert "waited 20% of the time" in reason
    assert "1.6 of 2" in reason


def test_others_do_no_harm_as_long_as_we_do_not_wait_for_them():
    assert Contention(waited=0.01, others=1.9, cores=2).reasons(threads=1) == ()


def test_where_waiting_is_not_told_more_wanted_than_there_is_gives_a_reason():
    (reason,) = Contention(others=1.0, cores=2).reasons(threads=2)
    assert "1.0 of 2 cores" in reason
    assert Contention(others=1.0, cores=2).reasons(threads=1) == ()
    assert Contention(others=6.0, cores=8).reasons(threads=2) == ()


def test_stolen_time_gives_a_reason():
    (reason,) = Contention(stolen=0.4, cores=2).reasons(threads=1)
    assert "0.40" in reason


def test_silence_of_the_system_is_no_reason():
    assert Contention().reasons(threads=1) == ()


def test_own_work_and_that_of_workers_is_not_counted_as_others(monkeypatch):
    system, own, wall = iter([(100.0, 0.0), (106.0, 0.5)]), iter([10.0, 12.0]), iter([0.0, 4.0])
    monkeypatch.setattr(contention, "_system_seconds", lambda: next(system))
    monkeypatch.setattr(contention, "_process_seconds", lambda: next(own))
    monkeypatch.setattr(contention, "_waited_seconds", lambda: None)
    monkeypatch.setattr(contention.time, "perf_counter", lambda: next(wall))
    seen = Watch.start().stop(in_workers=1.0)
    assert seen.others == pytest.approx((6 - 2 - 1) / 4)
    assert seen.stolen == pytest.approx(0.5 / 4)


def test_own_work_includes_the_children_that_have_ended(monkeypatch):
    times = os.times_result((1.0, 2.0, 4.0, 8.0, 100.0))
    monkeypatch.setattr(contention.os, "times", lambda: times)
    assert contention._process_seconds() == 1 + 2 + 4 + 8


def test_counters_of_the_cores_we_may_use_are_summed(tmp_path, monkeypatch):
    stat = tmp_path / "stat"
    rows = ["cpu  9 9 9 9 9 9 9 9 0 0", "cpu0 100 0 50 900 0 1 2 7 0 0", "cpu1 1 1 1 1 1 1 1 1 0 0", "intr 5"]
    stat.write_text("\n".join(rows))
    monkeypatch.setattr(contention.os, "sched_getaffinity", lambda _: {0}, raising=False)
    monkeypatch.setattr(contention.os, "sysconf", lambda _: 100)
    assert contention._system_seconds(stat) == (1.53, 0.07)


def test_a_system_without_counters_tells_nothing(tmp_path):
    assert contention._system_seconds(tmp_path / "missing") is None


def test_waiting_of_all_threads_is_summed(tmp_path):
    for task, waited in (("7", 250_000_000), ("8", 500_000_000)):
        (tmp_path / task).mkdir()
        (tmp_path / task / "schedstat").write_text(f"1000 {waited} 12\n")
    assert contention._waited_seconds(tmp_path) == 0.75


def test_a_system_without_queues_tells_nothing(tmp_path):
    assert contention._waited_seconds(tmp_path) is None
