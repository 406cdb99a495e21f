"""Exact selection of the highest scores over many tensors at once, without sorting them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from fractions import Fraction

import torch
from torch import Tensor

from sparsebert_kernels.radix_select import BINS, above, count, halves, keys, score

Size = Tensor | int

# Entries processed at once: as many as a core's private cache holds; more on a GPU, to fill it.
_CPU_CHUNK, _GPU_CHUNK = 1 << 18, 1 << 24


def ranked(scores: Tensor, alive: Tensor | None = None) -> Tensor:
    """Prepare scores for :func:`select_top`: contiguous, and NaN where ``alive`` (bool) is False.

    Raises ValueError unless the dtype is float32 and every live score a number.
    """
    if scores.dtype != torch.float32:
        raise ValueError(f"scores must be float32, got {scores.dtype}")
    scores = scores.contiguous()
    if alive is None:
        nan = any(bool(chunk.sum().isnan()) and bool(chunk.isnan().any()) for chunk, _ in _chunks(scores, 1))
    else:
        nan = bool((scores.isnan() & alive).any())
        scores = scores.masked_fill(~alive, math.nan)
    if nan:
        raise ValueError("a score is NaN")
    return scores


def select_top(scores: Sequence[Tensor], sizes: Sequence[Size], budget: Fraction) -> list[Tensor]:
    """Keep the entries with the highest scores until their sizes add up to the budget.

    Entries are ranked by score, highest first, and equal scores by tensor and flat index. The first entries
    of this ranking are kept, as many as bring the total size nearest to the budget; of two equally near
    numbers the even one. For entries of size 1 that is exactly ``round(budget)`` entries, for any ties and on
    any device. Nothing is sorted, and the masks are the only large allocation: one histogram of the scores'
    upper 16 bits finds the upper half of the threshold, a second one its lower half.

    Args:
        scores: float32 tensors of any shape, NaN for dead entries (see :func:`ranked`).
        sizes: Size of each entry: one int for all entries of a tensor, or an int64 tensor of its shape.
        budget: Total size to keep.

    Returns:
        bool tensors of the same shapes, True = keep.

    Raises:
        ValueError: The budget is larger than the size of all live entries.
    """
    threshold, filled = _threshold(scores, sizes, math.floor(budget))
    masks = [torch.empty_like(tensor, dtype=torch.bool) for tensor in scores]
    kept = 0
    tied: list[tuple[Tensor, Tensor, Size]] = []  # the chunks with entries at the threshold
    for tensor, mask, size in zip(scores, masks, sizes, strict=True):
        outputs = (out for out, _ in _chunks(mask, 1))
        for (chunk, part), out in zip(_chunks(tensor, size), outputs, strict=True):
            more, equal = _live(chunk, out) if threshold is None else above(chunk, threshold, out)
            kept += more
            if equal:
                tied.append((chunk, out, part))
    missing = _ties_to_keep(((_at(chunk, threshold), part) for chunk, _, part in tied), kept, budget - filled)
    if threshold is None and missing:
        raise ValueError("fewer weights are alive than should be kept: use a higher sparsity")
    for chunk, out, _ in tied:
        if not missing:
            break
        ties = _at(chunk, threshold).nonzero().flatten()[:missing]
        out[ties] = True
        missing -= len(ties)
    return masks


def _threshold(scores: Sequence[Tensor], sizes: Sequence[Size], room: int) -> tuple[float | None, int]:
    """Return the score at which the sizes, summed from the highest score down, exceed ``room``.

    The second result is the sum above that score. The score is None if all live entries fit.
    """
    upper, above = _passing(_sizes(scores, sizes), room)
    if upper is None:
        return None, above
    lower, between = _passing(_sizes(scores, sizes, upper), room - above)
    assert lower is not None
    return score(upper, lower), above + between


def _sizes(scores: Sequence[Tensor], sizes: Sequence[Size], upper: int | None = None) -> Tensor:
    """Return the total size of the live entries in each bin of ``halves``: int64 [BINS]."""
    total = torch.zeros(BINS, dtype=torch.int64)
    for tensor, size in zip(scores, sizes, strict=True):
        for chunk, part in _chunks(tensor, size):
            if isinstance(part, int):
                total += count(chunk, upper) * part
                continue
            alive = chunk == chunk
            part = part[alive]
            bins, where = halves(keys(chunk[alive]), upper)
            total += part.new_zeros(BINS).index_add_(0, bins, part if where is None else part[where]).cpu()
    return total


def _passing(sizes: Tensor, room: int) -> tuple[int | None, int]:
    """Return the bin at which the sizes, summed from the last bin down, exceed ``room``; and the sum above.

    If the total does not exceed ``room``, return None and the total.
    """
    reach = sizes.flip(0).cumsum(0)
    place = int(torch.searchsorted(reach, room, right=True))
    if place == len(sizes):
        return None, int(reach[-1])
    return len(sizes) - 1 - place, int(reach[place - 1]) if place else 0


def _live(chunk: Tensor, out: Tensor) -> tuple[int, int]:
    """Write the live entries (bool) into ``out``; return the numbers of live and of dead entries."""
    torch.eq(chunk, chunk, out=out)
    live = int(out.count_nonzero())
    return live, chunk.numel() - live


def _ties_to_keep(tied: Iterable[tuple[Tensor, Size]], kept: int, room: Fraction) -> int:
    """Return the number of tied entries, in order, that bring the total size nearest to the budget.

    Args:
        tied: For each chunk, the places of the entries at the threshold (bool) and the sizes of all entries.
        kept: Number of entries above the threshold.
        room: Budget for the entries at the threshold.
    """
    filled, count = 0, 0
    for ties, size in tied:
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


def _at(chunk: Tensor, threshold: float | None) -> Tensor:
    """Return the places of the entries at the threshold, or of the dead entries if the threshold is None."""
    return chunk.isnan() if threshold is None else chunk == threshold


def _chunks(tensor: Tensor, size: Size) -> Iterator[tuple[Tensor, Size]]:
    """Yield a contiguous tensor in pieces (views), each with the sizes of its entries."""
    step = _CPU_CHUNK if tensor.device.type == "cpu" else _GPU_CHUNK
    flat = tensor.view(-1)
    flat_size = size if isinstance(size, int) else size.reshape(-1)
    for start in range(0, len(flat), step):
        part = flat_size if isinstance(flat_size, int) else flat_size[start : start + step].to(tensor.device)
        yield flat[start : start + step], part
