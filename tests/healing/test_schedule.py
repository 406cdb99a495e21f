"""Learning rates, and steps that fill a budget."""

from __future__ import annotations

import time
from typing import Any

import pytest

from sparsebert.healing import schedule
from sparsebert.healing.schedule import WARMUP, Budget, warmed_and_decayed


def test_the_rate_rises_and_falls() -> None:
    assert [warmed_and_decayed(share) for share in (0, WARMUP / 2, WARMUP, 1)] == [0, 0.5, 1, 0]


def test_steps_are_counted_down() -> None:
    budget = Budget(None, 10, began=time.perf_counter())
    assert [budget.steps_left(done) for done in (0, 4, 10, 11)] == [10, 6, 0, 0]


class TestMinutes:
    @pytest.fixture
    def clock(self, monkeypatch: pytest.MonkeyPatch) -> Any:
        class Clock:
            now = 100.0

            def perf_counter(self) -> float:
                return self.now

        clock = Clock()
        monkeypatch.setattr(schedule, "time", clock)
        return clock

    def test_steps_follow_from_their_time(self, clock: Any) -> None:
        budget = Budget(60, None, began=100.0)
        budget.note_step(2.0)
        assert budget.steps_left(0) == 30
        assert budget.steps_left(0, reserve=10) == 25
        clock.now = 150.0
        assert (budget.steps_left(1), budget.seconds_left(1), budget.spent) == (5, 10, 50)

    def test_a_machine_that_slows_down_takes_fewer_steps(self, clock: Any) -> None:
        budget, share, step = Budget(60, None, began=100.0), 0.0, 0
        budget.note_step(1.0)
        while left := budget.steps_left(step):
            clock.now += (seconds := 1.0 if clock.now < 130 else 3.0)
            budget.note_step(seconds)
            step, share = step + 1, share + (1 - share) / left
        assert clock.now == pytest.approx(160, abs=3)
        assert step < 50
        assert share > 0.9

    def test_earlier_sessions_count(self, clock: Any) -> None:
        budget = Budget(60, None, began=100.0, spent=45)
        budget.note_step(1.0)
        assert budget.steps_left(0) == 15

    def test_no_time_is_no_step(self, clock: Any) -> None:
        budget = Budget(60, None, began=100.0, spent=61)
        budget.note_step(1.0)
        assert budget.steps_left(0) == 0
