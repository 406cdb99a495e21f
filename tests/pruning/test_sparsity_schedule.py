"""Levels: shares of the original or of the remaining weights, exact, never everything."""

from __future__ import annotations

from decimal import Decimal
from fractions import Fraction

import pytest

from sparsebert.pruning import Share, levels


def test_tenths_of_the_original_are_those_of_chen_et_al() -> None:
    """Their code prunes 1/(10 - r) of what is left in round r: the same nine levels."""
    left, theirs = Fraction(1), []
    for r in range(9):
        left *= 1 - Fraction(1, 10 - r)
        theirs.append(1 - left)
    assert list(levels(0.9, 0.1, Share.ORIGINAL)) == theirs == [Fraction(i, 10) for i in range(1, 10)]


def test_shares_of_the_remaining_are_powers() -> None:
    path = levels(Decimal("0.5904"), 0.2, Share.REMAINING)
    assert path == tuple(1 - Fraction(4, 5) ** i for i in range(1, 5))


@pytest.mark.parametrize("share", Share)
def test_the_last_step_ends_at_the_target(share: Share) -> None:
    path = levels(0.75, 0.2, share)
    assert path[-1] == Fraction(3, 4)
    assert list(path) == sorted(set(path))


def test_no_level_for_a_dense_model() -> None:
    assert levels(0, 0.1, Share.ORIGINAL) == ()


def test_steps_may_start_later() -> None:
    half = Fraction(1, 2)
    assert levels(0.7, 0.1, Share.ORIGINAL, start=half) == (Fraction(6, 10), Fraction(7, 10))
    assert levels(0.5, 0.1, Share.ORIGINAL, start=half) == ()


@pytest.mark.parametrize("target", [1, 1.0, -0.1, 70, float("nan"), "0.5", True])
def test_a_tenth_round_that_would_prune_everything_is_refused(target: object) -> None:
    with pytest.raises(ValueError, match="sparsity must be"):
        levels(target, 0.1, Share.ORIGINAL)  # type: ignore[arg-type]


@pytest.mark.parametrize("step", [0, 1, -0.1, float("inf")])
def test_a_step_that_is_no_share_is_refused(step: float) -> None:
    with pytest.raises(ValueError, match="share pruned in a step must be"):
        levels(0.5, step, Share.REMAINING)
