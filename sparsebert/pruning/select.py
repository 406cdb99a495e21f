"""Exact selection of the highest scores over many tensors at once, without sorting them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from fractions import Fraction

import torch
from torch import Tensor

Size = Tensor | int

# Entries looked at together: a core's own cache holds them, a GPU wants more at once.
_CPU_CHUNK, _GPU_CHUNK = 1 << 18, 1 << 24
# One entry in so many is drawn, this many at most; where few would be, all are sorted.
_SHARE, _SAMPLE, _FEW = 1 << 5, 1 << 16, 1 << 8


def ranked(scores: Tensor, alive: Tensor | None = None) -> Tensor:
    """float32 scores as :func:`select` takes them: contiguous, and NaN where ``alive`` (bool) is False.

    Raises ValueError for another dtype, or if a live score is NaN.
    """
    if scores.dtype != torch.float32:
        raise ValueError(f"scores must be float32, not {scores.dtype}")
    scores = scores.contiguous()
    if alive is None:
        nan = any(bool(chunk.sum().isnan()) and bool(chunk.isnan().any()) for chunk, _ in _chunks(scores, 1))
    else:
        nan = bool((scores.isnan() & alive).any())
        scores = scores.masked_fill(~alive, math.nan)
    if nan:
        raise ValueError("a score is NaN")
    return scores


def select(scores: Sequence[Tensor], sizes: Sequence[Size], budget: Fraction) -> list[Tensor]:
    """Keep the highest entries until their sizes sum up to the budget.

    ``scores``: float32 tensors of any shape, dead entries NaN (:func:`ranked`).
    ``sizes``: how much an entry counts, an int for all of a tensor or an int64 tensor of its shape.
    Returns bool tensors of the same shapes, True = keep.

    Entries are ranked by score, highest first, equal scores by tensor and flat index. Kept are the first
    entries of this ranking whose total size is nearest to the budget, an even number of them if two are
    equally near. For entries of size 1 that is exactly ``round(budget)`` entries, for any ties and on any
    device. Beside the masks little memory is needed: a random sample says between which two scores the
    threshold lies, and only the few entries between them are sorted. The sample decides how long that takes,
    never what comes out.

    Raises ValueError if the budget asks for entries that are dead.
    """
    threshold, above = _threshold(scores, sizes, math.floor(budget))
    masks = [torch.empty_like(tensor, dtype=torch.bool) for tensor in scores]
    kept = 0
    tied: list[tuple[Tensor, Tensor, Size]] = []  # the chunks with entries at the threshold
    for tensor, mask, size in zip(scores, masks, sizes, strict=True):
        outputs = (out for out, _ in _chunks(mask, 1))
        for (chunk, part), out in zip(_chunks(tensor, size), outputs, strict=True):
            out.copy_(chunk == chunk if threshold is None else chunk > threshold)
            kept += int(out.count_nonzero())
            if _at(chunk, threshold).any():
                tied.append((chunk, out, part))
    left = _ties_to_keep(((_at(chunk, threshold), part) for chunk, _, part in tied), kept, budget - above)
    if threshold is None and left:
        raise ValueError("fewer weights are left than should be kept")
    for chunk, out, _ in tied:
        if not left:
            break
        ties = _at(chunk, threshold).nonzero().flatten()[:left]
        out[ties] = True
        left -= len(ties)
    return masks


def _threshold(scores: Sequence[Tensor], sizes: Sequence[Size], room: int) -> tuple[float | None, int]:
    """The score with whose entries the sizes, summed from the highest down, pass ``room``; the sum above it.

    The score is None if all live entries fit.
    """
    drawn, reach = _sample(scores, sizes)
    at = int(torch.searchsorted(reach, room))
    for margin in _margins(len(drawn)):
        high = float(drawn[at - margin]) if at >= margin else None
        low = float(drawn[at + margin]) if at + margin < len(drawn) else None
        above, at_high, values, parts = _between(scores, sizes, low, high)
        if above > room:
            continue
        if high is not None and above + at_high > room:
            return high, above
        values, order = values.sort(descending=True)
        ends = above + at_high + parts[order].cumsum(0)
        fitting = int(torch.searchsorted(ends, room, right=True))
        if fitting < len(values):
            found = float(values[fitting])
            first = int((values > found).count_nonzero())  # of those equal to it
            return found, int(ends[first - 1]) if first else above + at_high
        above = int(ends[-1]) if len(values) else above + at_high
        if low is None:
            return None, above
        if low == high:
            continue
        at_low = sum(
            _total(chunk == low, part)
            for tensor, size in zip(scores, sizes, strict=True)
            for chunk, part in _chunks(tensor, size)
        )
        if above + at_low > room:
            return low, above
    raise AssertionError("the last margin leaves nothing out")


def _sample(scores: Sequence[Tensor], sizes: Sequence[Size]) -> tuple[Tensor, Tensor]:
    """Live scores at random places, the highest first, and the size that the entries down to each have
    together, as far as the sample tells. None of them where sorting all entries is as quick."""
    entries = sum(tensor.numel() for tensor in scores)
    share = min(1 / _SHARE, _SAMPLE / max(entries, 1))
    if entries * share < _FEW:
        return torch.empty(0), torch.empty(0)
    chance = torch.Generator().manual_seed(0)
    values, weights = [], []
    for tensor, size in zip(scores, sizes, strict=True):
        if not (count := math.ceil(tensor.numel() * share)):
            continue
        places = torch.randint(tensor.numel(), (count,), generator=chance)
        values.append(tensor.view(-1)[places.to(tensor.device)].cpu())
        part = torch.full((count,), size) if isinstance(size, int) else size.reshape(-1)[places].cpu()
        weights.append(part * (tensor.numel() / count))
    drawn, weight = torch.cat(values), torch.cat(weights)
    alive = ~drawn.isnan()
    drawn, order = drawn[alive].sort(descending=True)
    return drawn, weight[alive][order].cumsum(0, dtype=torch.float64)


def _margins(drawn: int) -> tuple[int, int, int]:
    """Ranks of the sample on either side of the threshold's expected place: four times the standard deviation
    of the rank, where it is largest, then so many that it is there, then all."""
    likely = 2 * math.isqrt(drawn) + 1
    return likely, 8 * likely, drawn + 1


def _between(
    scores: Sequence[Tensor], sizes: Sequence[Size], low: float | None, high: float | None
) -> tuple[int, int, Tensor, Tensor]:
    """Total size of the entries above ``high`` and at it; entries between the two, and the size of each."""
    above, from_high = 0, 0
    values, parts = [torch.empty(0)], [torch.empty(0, dtype=torch.int64)]
    for tensor, size in zip(scores, sizes, strict=True):
        for chunk, part in _chunks(tensor, size):
            inside = chunk == chunk if low is None else chunk > low
            if high is not None:
                above += _total(chunk > high, part)
                from_high += _total(chunk >= high, part)
                inside &= chunk < high
            found = chunk[inside].cpu()
            values.append(found)
            parts.append(torch.full(found.shape, part) if isinstance(part, int) else part[inside].cpu())
    return above, from_high - above, torch.cat(values), torch.cat(parts)


def _ties_to_keep(tied: Iterable[tuple[Tensor, Size]], kept: int, room: Fraction) -> int:
    """How many of the entries at the threshold, in order, bring the total nearest to the budget.

    ``tied``: chunk by chunk where they are (bool), and sizes. ``kept``: entries above the threshold.
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
    """Where the entries at the threshold are; below it, the dead ones, where it is None."""
    return chunk.isnan() if threshold is None else chunk == threshold


def _total(chosen: Tensor, size: Size) -> int:
    return int(chosen.count_nonzero()) * size if isinstance(size, int) else int(size[chosen].sum())


def _chunks(tensor: Tensor, size: Size) -> Iterator[tuple[Tensor, Size]]:
    """Views of a contiguous tensor piece by piece, each with the sizes of its entries."""
    step = _CPU_CHUNK if tensor.device.type == "cpu" else _GPU_CHUNK
    flat = tensor.view(-1)
    flat_size = size if isinstance(size, int) else size.reshape(-1)
    for start in range(0, len(flat), step):
        part = flat_size if isinstance(flat_size, int) else flat_size[start : start + step].to(tensor.device)
        yield flat[start : start + step], part
