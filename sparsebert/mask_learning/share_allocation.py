"""Allocation of a total density to matrices: proportional shares, shares capped at 1, and whole counts."""

from __future__ import annotations

import math
from collections.abc import Sequence


def proportional_shares(rates: Sequence[float], sizes: Sequence[int], density: float) -> list[float]:
    """Return shares that are proportional to the rates and keep ``density`` of the sum of the sizes.

    A share may exceed 1. If all rates are 0, they count as equal.

    Raises:
        ValueError: A rate is NaN.
    """
    if any(math.isnan(rate) for rate in rates):
        raise ValueError("a score is NaN: training diverged; lower the learning rates")
    total = sum(rate * size for rate, size in zip(rates, sizes, strict=True))
    if total == 0:
        return [density] * len(rates)
    return [rate * density * sum(sizes) / total for rate in rates]


def capped_shares(rates: Sequence[float], sizes: Sequence[int], density: float) -> list[float]:
    """Return shares as :func:`proportional_shares` does, capped at 1.

    The excess of a matrix above 1 is distributed over the other matrices in proportion (water filling).
    """
    shares = [1.0] * len(rates)
    unfilled = list(range(len(rates)))
    budget = density * sum(sizes)
    while unfilled:
        room = sum(sizes[i] for i in unfilled)
        proposed = proportional_shares(
            [rates[i] for i in unfilled], [sizes[i] for i in unfilled], budget / room
        )
        full = [i for i, share in zip(unfilled, proposed, strict=True) if share >= 1]
        if not full:
            for i, share in zip(unfilled, proposed, strict=True):
                shares[i] = share
            break
        budget -= sum(sizes[i] for i in full)
        unfilled = [i for i in unfilled if i not in full]
    return shares


def whole_counts(shares: Sequence[float], sizes: Sequence[int], total: int) -> list[int]:
    """Round share * size to counts that sum to ``total``: largest remainders first, then in order."""
    exact_counts = [share * size for share, size in zip(shares, sizes, strict=True)]
    counts = [min(math.floor(count), size) for count, size in zip(exact_counts, sizes, strict=True)]
    order = sorted(range(len(counts)), key=lambda i: counts[i] - exact_counts[i])
    missing = total - sum(counts)
    while missing > 0:
        for i in order:
            if missing and counts[i] < sizes[i]:
                counts[i] += 1
                missing -= 1
    return counts
