"""Scores by integers of the same order: their keys. Counting them finds a threshold without sorting."""

from __future__ import annotations

import torch
from torch import Tensor

from sparsebert_kernels.cpu import native

BINS = 1 << 16
_SIGN = 1 << 15


def keys(scores: Tensor) -> Tensor:
    """int32 in the order of float32 ``scores`` without NaN, equal where those are: -0.0 and 0.0 are."""
    bits = (scores + 0.0).view(torch.int32)
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)


def halves(keys: Tensor, upper: int | None) -> tuple[Tensor, Tensor | None]:
    """Bins (from 0 to BINS - 1) that the keys fall in by their upper half; or by their lower half those whose
    upper half falls in the bin ``upper``, and where these are (bool)."""
    bins = (keys >> 16) + _SIGN
    if upper is None:
        return bins, None
    where = bins == upper
    return keys[where] & (BINS - 1), where


def score(upper: int, lower: int) -> float:
    """The score whose key falls in these two bins."""
    key = torch.tensor((upper - _SIGN) << 16 | lower, dtype=torch.int32)
    return float((key ^ ((key >> 31) & 0x7FFFFFFF)).view(torch.float32))


def count(scores: Tensor, upper: int | None) -> Tensor:
    """How many of the scores (float32, flat, contiguous; NaN is none) fall in each bin, as `halves` has it:
    int64 [BINS] on the CPU."""
    if scores.is_cpu and native.available():
        return native.count_scores(scores, -1 if upper is None else upper, BINS)
    bins, _ = halves(keys(scores[scores == scores]), upper)
    return torch.bincount(bins, minlength=BINS).cpu()


def above(scores: Tensor, threshold: float, out: Tensor) -> tuple[int, int]:
    """``out`` = scores > threshold, for flat contiguous tensors: how many are above it, how many at it."""
    if scores.is_cpu and native.available():
        return native.above(scores, threshold, out)
    torch.gt(scores, threshold, out=out)
    return int(out.count_nonzero()), int((scores == threshold).count_nonzero())
