"""Budgets across matrices: how many weights each keeps, for the least error of the whole model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

# Steps into which a budget is cut. Costs are rounded down to steps: a choice may exceed the budget by less
# than a step for each matrix.
STEPS = 4000


class Option(NamedTuple):
    """One way to prune a matrix.

    Attributes:
        error: What it costs the model's outputs.
        cost: What it takes of the budget: weights, or seconds.
    """

    error: float
    cost: float


def choose(options: Mapping[str, Sequence[Option]], budget: float) -> dict[str, int]:
    """Choose one option for each matrix: the least sum of errors within a budget of costs.

    Dynamic programming over matrices and the budget in ``STEPS`` steps, as in SPDY (Frantar and Alistarh
    2022) and ZipLM (Kurtic, Frantar and Alistarh 2023).

    Args:
        options: The options of each matrix.
        budget: Limit of the sum of costs.

    Returns:
        The index of the chosen option, by matrix.

    Raises:
        ValueError: Even the cheapest options exceed the budget.
    """
    least = sum(min(option.cost for option in each) for each in options.values())
    if least > budget:
        raise ValueError(f"the budget of {budget:g} is below the least possible cost of {least:g}")
    step = budget / STEPS if budget else 1.0
    best: NDArray[np.float64] = np.zeros(STEPS + 1)  # least error of the matrices so far, by steps spent
    taken: list[NDArray[np.int64]] = []
    for each in options.values():
        candidates = np.full((len(each), STEPS + 1), np.inf)
        for index, option in enumerate(each):
            spent = int(option.cost / step + 1e-9)
            if spent <= STEPS:
                candidates[index, spent:] = best[: STEPS + 1 - spent] + option.error
        choice = candidates.argmin(0)
        taken.append(choice)
        best = candidates[choice, np.arange(STEPS + 1)]
    indices: dict[str, int] = {}
    left = STEPS
    for key, choice in zip(reversed(list(options)), reversed(taken), strict=True):
        indices[key] = int(choice[left])
        left -= int(options[key][indices[key]].cost / step + 1e-9)
    return {key: indices[key] for key in options}
