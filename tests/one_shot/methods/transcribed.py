"""What the units of the transcribed algorithms have in common, in plain numpy."""

from __future__ import annotations

import numpy as np

Array = np.ndarray


def keep_best(scores: Array, height: int, width: int, kept: int) -> Array:
    """The mask of the ``kept`` units of height x width weights with the highest sums of scores.

    The units divide the matrix; of equal ones, the first stay.
    """
    rows, columns = scores.shape
    sums = scores.reshape(rows // height, height, columns // width, width).sum((1, 3))
    best = np.argsort(-sums, axis=None, kind="stable")[:kept]
    units = np.zeros(sums.size, dtype=bool)
    units[best] = True
    return units.reshape(sums.shape).repeat(height, 0).repeat(width, 1)


def keep_n_of_m(scores: Array, n: int, m: int) -> Array:
    """The mask of the n highest scores of every m neighbours in a row; of equal ones, the first stay."""
    mask = np.zeros(scores.shape, dtype=bool)
    for row, line in enumerate(scores):
        for begin in range(0, len(line), m):
            best = np.argsort(-line[begin : begin + m], kind="stable")[:n]
            mask[row, begin + best] = True
    return mask
