"""The ramps: exact values at their beginning, middle and end."""

from __future__ import annotations

from fractions import Fraction

import pytest

from sparsebert.mask_learning.schedules import Ramp, between_warm_ups, cubic, linear

TENTH = Fraction(1, 10)


def test_the_cubic_of_zhu_and_gupta() -> None:
    ramp = Ramp(0, 100)
    assert ramp.at(0, Fraction(1), TENTH) == 1
    assert ramp.at(50, Fraction(1), TENTH) == TENTH + (1 - TENTH) * Fraction(1, 2) ** 3
    assert ramp.at(100, Fraction(1), TENTH) == TENTH
    assert ramp.at(10**6, Fraction(1), TENTH) == TENTH


def test_the_line() -> None:
    values = [Ramp(0, 4, linear).at(step, Fraction(1), Fraction(1, 5)) for step in range(6)]
    assert values == [1, Fraction(4, 5), Fraction(3, 5), Fraction(2, 5), Fraction(1, 5), Fraction(1, 5)]


def test_between_the_warm_ups_it_is_that_of_the_movement_pruning_code() -> None:
    """``schedule_threshold`` of Sanh et al. 2020, with its warm-ups of 1 and 2, and a threshold to 0.15."""
    steps, warmup, last = 100, 20, 0.15
    ramp = between_warm_ups(steps, warmup, 1, 2)
    for step in range(steps + 1):
        if step <= warmup:
            expected = 1.0
        elif step > steps - 2 * warmup:
            expected = last
        else:
            left = 1 - (step - warmup) / (steps - 3 * warmup)
            expected = last + (1 - last) * left**3
        assert float(ramp.at(step, Fraction(1), Fraction("0.15"))) == pytest.approx(expected, abs=1e-15)


def test_without_a_warm_up_it_spans_the_run() -> None:
    assert between_warm_ups(7, 0, 1, 2) == Ramp(0, 7, cubic)


@pytest.mark.parametrize(("steps", "warmup"), [(117, 500), (30, 10), (3, 1)])
def test_a_run_with_no_room_for_the_ramp_is_refused(steps: int, warmup: int) -> None:
    with pytest.raises(ValueError, match=f"a run of {steps} steps has no room for the ramp"):
        between_warm_ups(steps, warmup, 1, 2)


def test_a_ramp_without_length_is_refused() -> None:
    for begin, end in ((5, 5), (6, 5), (-1, 5)):
        with pytest.raises(ValueError, match="a ramp must end after it begins"):
            Ramp(begin, end)
