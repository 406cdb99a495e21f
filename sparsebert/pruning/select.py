"""Exact selection of the highest scores over many tensors at once, without sorting them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from fractions import Fraction

import torch
from torch import Tensor

# No float32 but a NaN maps to the smallest key, and NaN scores are refused: it marks what is dead already.
_DEAD = torch.iinfo(torch.int32).min
_HALF = 16
_BINS = 1 << _HALF


def ordered_keys(scores: Tensor, alive: Tensor | None = None) -> Tensor:
    """int32 keys in the order of float32 scores (-0.0 equal to 0.0); dead entries get the smallest key.

    ``alive``: bool, of the same shape. Raises ValueError if a live score is NaN.
    """
    if scores.dtype != torch.float32:
        raise ValueError(f"scores must be float32, not {scores.dtype}")
    bits = (scores + 0.0).contiguous().view(torch.int32)
    keys = bits ^ ((bits >> 31) & 0x7FFFFFFF)
    if alive is not None:
        keys = keys.masked_fill(~alive, _DEAD)
    nan = torch.isnan(scores)
    if (nan if alive is None else nan & alive).any():
        raise ValueError("a score is NaN")
    return keys


def select(keys: Sequence[Tensor], sizes: Sequence[Tensor | int], budget: Fraction) -> list[Tensor]:
    """Keep the highest entries until their sizes sum up to the budget.

    ``keys``: contiguous int32 tensors of any shape (:func:`ordered_keys`).
    ``sizes``: how much an entry counts, an int for all of a tensor or an int64 tensor of its shape.
    Returns bool tensors of the same shapes, True = keep.

    Entries are ranked by key, highest first, equal keys by tensor and flat index. Kept are the first entries
    of this ranking whose total size is nearest to the budget, an even number of them if two are equally near.
    For entries of size 1 that is exactly ``round(budget)`` entries, for any ties and on any device.
    The threshold is found by two histograms over 16 bits each: time is linear, memory small.

    Raises ValueError if the budget asks for entries that are dead.
    """
    high, above = _crossing(((tensor >> _HALF) + _BINS // 2 for tensor in keys), sizes, budget, 0)
    if high < 0:
        if any((tensor == _DEAD).any() for tensor in keys):
            raise _too_few()
        return [torch.ones_like(tensor, dtype=torch.bool) for tensor in keys]
    first = (high - _BINS // 2) << _HALF
    inside = [(tensor >= first) & (tensor <= first + _BINS - 1) for tensor in keys]
    low, above = _crossing(
        (tensor[chosen] - first for tensor, chosen in zip(keys, inside, strict=True)),
        [size if isinstance(size, int) else size[chosen] for size, chosen in zip(sizes, inside, strict=True)],
        budget,
        above,
    )
    del inside
    threshold = first + low
    kept = [tensor > threshold for tensor in keys]
    left = _ties_to_keep(
        keys, sizes, threshold, sum(int(mask.count_nonzero()) for mask in kept), budget - above
    )
    if threshold == _DEAD and left:
        raise _too_few()
    for tensor, mask in zip(keys, kept, strict=True):
        if not left:
            break
        ties = (tensor == threshold).flatten().nonzero().flatten()[:left]
        mask.view(-1)[ties] = True
        left -= len(ties)
    return kept


def _crossing(
    bins: Iterable[Tensor], sizes: Iterable[Tensor | int], budget: Fraction, above: int
) -> tuple[int, int]:
    """The bin in which sizes, summed from the highest bin down, pass the budget, and the sum above it.

    ``above``: what is kept already. The bin is -1 if everything fits.
    """
    totals = torch.zeros(_BINS, dtype=torch.float64)  # exact for whole numbers below 2**53
    for tensor, size in zip(bins, sizes, strict=True):
        if isinstance(size, int):
            totals += torch.bincount(tensor.flatten(), minlength=_BINS).cpu() * float(size)
        else:
            totals += torch.bincount(tensor.flatten(), size.flatten().double(), minlength=_BINS).cpu()
    from_top = totals.flip(0).cumsum(0)
    fitting = int(torch.searchsorted(from_top, float(math.floor(budget) - above), right=True))
    if fitting == _BINS:
        return -1, above
    return _BINS - 1 - fitting, above + (int(from_top[fitting - 1]) if fitting else 0)


def _ties_to_keep(
    keys: Sequence[Tensor], sizes: Sequence[Tensor | int], threshold: int, kept: int, room: Fraction
) -> int:
    """How many of the entries at the threshold, in order, bring the total nearest to the budget."""
    filled, count = 0, 0
    for tensor, size in zip(keys, sizes, strict=True):
        ties = tensor == threshold
        number = int(ties.count_nonzero())
        steps = torch.full((number,), size) if isinstance(size, int) else size[ties].cpu()
        ends = filled + steps.cumsum(0)
        fitting = int(torch.searchsorted(ends, math.floor(room), right=True))
        if fitting < number:
            under = room - (int(ends[fitting - 1]) if fitting else filled)
            over = int(ends[fitting]) - room
            count += fitting
            return count + (over < under or (over == under and (kept + count) % 2 == 1))
        count += number
        filled = int(ends[-1]) if number else filled
    return count


def _too_few() -> ValueError:
    return ValueError("fewer weights are left than should be kept")
