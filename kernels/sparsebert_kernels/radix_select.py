"""Radix selection: a threshold of scores, found from histograms of integer keys without sorting."""

from __future__ import annotations

import torch
from torch import Tensor

from sparsebert_kernels.cpu import native

BINS = 1 << 16
_SIGN = 1 << 15


def keys(scores: Tensor) -> Tensor:
    """Return int32 keys in the order of float32 ``scores`` without NaN; -0.0 and 0.0 share a key."""
    bits = (scores + 0.0).view(torch.int32)
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)


def halves(keys: Tensor, upper: int | None) -> tuple[Tensor, Tensor | None]:
    """Return the bin of each key, from 0 to BINS - 1.

    Args:
        keys: See ``keys``.
        upper: None to bin all keys by their upper half; else one of these bins, to bin its keys by their
            lower half.

    Returns:
        The bins, and a bool mask of the binned keys (None for all keys).
    """
    bins = (keys >> 16) + _SIGN
    if upper is None:
        return bins, None
    where = bins == upper
    return keys[where] & (BINS - 1), where


def score(upper: int, lower: int) -> float:
    """Return the score whose key falls in these two bins."""
    key = torch.tensor((upper - _SIGN) << 16 | lower, dtype=torch.int32)
    return float((key ^ ((key >> 31) & 0x7FFFFFFF)).view(torch.float32))


def count(scores: Tensor, upper: int | None) -> Tensor:
    """Count the scores in each bin of ``halves``.

    Args:
        scores: float32, flat, contiguous; NaN is skipped.
        upper: See ``halves``.

    Returns:
        int64 [BINS] on the CPU.
    """
    if scores.is_cpu and native.available():
        return native.count_scores(scores, -1 if upper is None else upper, BINS)
    bins, _ = halves(keys(scores[scores == scores]), upper)
    return torch.bincount(bins, minlength=BINS).cpu()


def above(scores: Tensor, threshold: float, out: Tensor) -> tuple[int, int]:
    """Set ``out`` = scores > threshold, for flat contiguous tensors.

    Returns:
        The number of scores above the threshold, and the number of scores equal to it.
    """
    if scores.is_cpu and native.available():
        return native.above(scores, threshold, out)
    torch.gt(scores, threshold, out=out)
    return int(out.count_nonzero()), int((scores == threshold).count_nonzero())
