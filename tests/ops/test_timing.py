"""Short timings: of the runs that nothing disturbed, and marked where there are too few of these."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from itertools import chain

import pytest

from sparsebert_kernels import timing
from sparsebert_kernels.timing import MAX_ATTEMPTS, MAX_STILL, Paired, least, paired


class Clock:
    """Time that passes as the tests say; the processor gives ``work`` only a share of it."""

    def __init__(self) -> None:
        self.now = self.processor = 0.0

    def work(self, seconds: Iterator[float], waited: Iterator[float]) -> Callable[[], None]:
        def run() -> None:
            own = next(seconds)
            self.processor += own
            self.now += own + next(waited)

        return run


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    found = Clock()
    monkeypatch.setattr(timing.time, "perf_counter", lambda: found.now)
    monkeypatch.setattr(timing.time, "process_time", lambda: found.processor)
    monkeypatch.setattr(timing, "WARM_UP_SECONDS", 0)
    return found


def always(value: float) -> Iterator[float]:
    while True:
        yield value


def pattern(*values: float) -> Iterator[float]:
    yield values[0]  # the warm-up
    while True:
        yield from values


def test_two_sides_of_a_quiet_machine(clock: Clock) -> None:
    mine, other = clock.work(always(0.002), always(0)), clock.work(always(0.006), always(0))
    found = paired(mine, other, budget=0.08)
    assert found == Paired(
        pytest.approx(0.002), pytest.approx(0.006), pytest.approx(3.0), 10, pytest.approx(0), busy=False
    )


def test_a_process_that_is_suspended_for_a_while_is_timed_by_its_other_runs(clock: Clock) -> None:
    mine = clock.work(always(0.002), pattern(0, 0, 0, 60, 0, 0, 0, 0, 0))
    found = paired(mine, clock.work(always(0.006), always(0)), budget=0.03)
    assert (found.mine, found.speedup, found.busy) == (pytest.approx(0.002), pytest.approx(3.0), False)


def test_runs_that_waited_for_a_core_do_not_count(clock: Clock) -> None:
    """Every second one of them takes three times as long: the median of all would be between the two."""
    mine = clock.work(always(0.002), always(0))
    other = clock.work(always(0.002), pattern(0.004, 0))
    found = paired(mine, other, budget=0, min_rounds=3)
    assert (found.other, found.speedup, found.rounds) == (pytest.approx(0.002), pytest.approx(1.0), 3)


def test_a_little_waiting_is_no_disturbance(clock: Clock) -> None:
    mine = clock.work(always(0.002), always(0.002 * MAX_STILL / 2))
    assert not paired(mine, mine).busy


def test_threads_may_use_more_processor_time_than_passes(clock: Clock) -> None:
    def on_two_threads() -> None:
        clock.now += 0.002
        clock.processor += 0.004

    assert not paired(on_two_threads, on_two_threads).busy


def test_a_machine_that_is_never_quiet_is_tried_again_and_marked(clock: Clock) -> None:
    mine, other = clock.work(always(0.002), always(0.004)), clock.work(always(0.006), always(0.006))
    found = paired(mine, other, min_rounds=7)
    assert found.busy
    assert found.spread == math.inf
    # Warm-up, and no more than twice the rounds in each attempt: planning does not stand still with it.
    assert clock.processor == pytest.approx((1 + MAX_ATTEMPTS * 14) * 0.008)


def test_the_processor_time_of_a_single_thread_counts_where_every_run_waited(
    clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(timing.time, "thread_time", lambda: clock.processor)
    mine, other = clock.work(always(0.002), always(0.004)), clock.work(always(0.006), pattern(0.003, 0.02))
    assert paired(mine, other) == Paired(
        pytest.approx(0.002), pytest.approx(0.006), pytest.approx(3.0), 14, pytest.approx(0), busy=False
    )
    found = least(clock.work(pattern(0.003, 0.002, 0.003), always(0.004)), budget=0)
    assert (found.seconds, found.busy) == (pytest.approx(0.002), False)


def test_work_that_sleeps_has_no_processor_time_to_count(
    clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(timing.time, "thread_time", lambda: clock.processor)
    sleeping = clock.work(always(0.0001), always(0.004))
    assert paired(sleeping, sleeping).busy
    assert least(sleeping).busy


def test_too_few_undisturbed_rounds_are_marked(clock: Clock) -> None:
    """A third of twice the rounds: two, where three are needed."""
    mine = clock.work(always(0.002), pattern(0.004, 0.004, 0))
    found = paired(mine, clock.work(always(0.006), always(0)), budget=0, min_rounds=3)
    assert (found.mine, found.rounds, found.busy) == (pytest.approx(0.002), 2, True)


def test_times_that_vary_without_waiting_are_tried_again(clock: Clock) -> None:
    """As with neighbours who take the memory's bandwidth: the processor counts that as work."""
    unsteady = [0.002, 0.004, 0.006, 0.003, 0.005, 0.002, 0.007]
    mine = clock.work(iter([0.002, *unsteady, *[0.002] * 7]), always(0))
    found = paired(mine, clock.work(always(0.006), always(0)), budget=0)
    assert (found.mine, found.busy) == (pytest.approx(0.002), False)


def test_the_steadiest_attempt_counts_where_none_is_steady(clock: Clock) -> None:
    attempts = [0.001, 0.009, 0.002], [0.002, 0.003, 0.002], [0.008, 0.001, 0.004]
    mine = clock.work(chain([0.001], *attempts), always(0))
    found = paired(mine, clock.work(always(0.006), always(0)), budget=0, min_rounds=3)
    assert (found.mine, found.busy) == (pytest.approx(0.002), True)


def test_the_least_is_that_of_a_run_without_waiting(clock: Clock) -> None:
    found = least(clock.work(pattern(0.003, 0.001, 0.003), pattern(0, 0.001, 0)), budget=0)
    assert (found.seconds, found.busy) == (pytest.approx(0.003), False)


def test_the_least_of_runs_that_all_waited_is_marked(clock: Clock) -> None:
    found = least(clock.work(always(0.002), always(0.001)), budget=0)
    assert (found.seconds, found.busy) == (pytest.approx(0.003), True)


def test_the_clocks_of_this_machine_can_tell() -> None:
    """Sleeping stands in for being suspended."""
    assert least(lambda: timing.time.sleep(0.003)).busy
    assert not least(lambda: sum(range(20_000))).busy
