"""Shares of a density: in proportion to rates, never above 1, and in whole numbers."""

from __future__ import annotations

import pytest

from sparsebert.mask_learning.share_allocation import capped_shares, proportional_shares, whole_counts


@pytest.mark.parametrize(
    ("rates", "sizes", "density", "shares"),
    [
        ([1, 1], [10, 10], 0.5, [0.5, 0.5]),
        ([3, 1], [30, 10], 0.5, [0.6, 0.2]),
        ([9, 1], [10, 10], 0.6, [1.0, 0.2]),
        ([8, 4, 1], [10, 10, 10], 0.8, [1.0, 1.0, 0.4]),
        ([5, 0], [10, 10], 0.75, [1.0, 0.5]),
    ],
)
def test_the_excess_of_a_full_matrix_goes_to_the_others(
    rates: list[float], sizes: list[int], density: float, shares: list[float]
) -> None:
    assert capped_shares(rates, sizes, density) == pytest.approx(shares)


def test_without_a_cap_a_share_may_exceed_1() -> None:
    assert proportional_shares([9, 1], [10, 10], 0.6) == pytest.approx([1.08, 0.12])


def test_rates_of_zero_count_as_equal() -> None:
    assert proportional_shares([0, 0], [30, 10], 0.25) == [0.25, 0.25]


def test_a_rate_that_is_nan_is_refused() -> None:
    with pytest.raises(ValueError, match="a score is NaN"):
        proportional_shares([float("nan"), 1], [10, 10], 0.5)


def test_whole_counts_have_the_sum_that_is_asked_for() -> None:
    assert whole_counts([0.25, 0.25, 0.5], [10, 10, 10], 10) == [3, 2, 5]
    assert whole_counts([1.0, 0.05], [10, 10], 11) == [10, 1]
    assert whole_counts([0.7, 0.7], [10, 10], 14) == [7, 7]
