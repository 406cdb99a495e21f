"""Budgets: the best choice of an option for each matrix, compared with all choices."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparsebert.one_shot.budgets import STEPS, Option, choose

options = st.lists(st.builds(Option, st.floats(0, 10), st.integers(0, 40).map(float)), min_size=1, max_size=4)


@given(st.lists(options, min_size=1, max_size=5), st.integers(1, 120).map(float))
def test_no_choice_within_the_budget_has_less_error(matrices, budget):
    given_options = {str(index): each for index, each in enumerate(matrices)}
    affordable = [
        sum(option.error for option in choice)
        for choice in itertools.product(*matrices)
        if sum(option.cost for option in choice) <= budget
    ]
    if not affordable:
        with pytest.raises(ValueError, match="is below the least possible cost"):
            choose(given_options, budget)
        return
    chosen = choose(given_options, budget)
    picked = [given_options[key][index] for key, index in chosen.items()]
    assert list(chosen) == list(given_options)
    assert sum(option.error for option in picked) <= min(affordable) + 1e-9
    assert sum(option.cost for option in picked) <= budget * (1 + len(matrices) / STEPS)


def test_a_budget_that_nothing_fits_is_refused():
    with pytest.raises(ValueError, match=r"the budget of 3 is below the least possible cost of 5"):
        choose({"a": [Option(0, 4), Option(1, 2)], "b": [Option(0, 3)]}, 3)
