"""Timing of a layer's candidate formats, each in alternation with the prepacked dense layer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from sparsebert.cost.candidates import FormatCandidates, stored_dtype
from sparsebert.cost.precision import pack_as
from sparsebert.cost.work import WorkEstimate
from sparsebert.planning.target_layers import TargetLayer
from sparsebert_kernels import ops
from sparsebert_kernels.cuda.timing import paired as paired_on_gpu
from sparsebert_kernels.timing import Paired, paired

# At most this many candidates of a layer are timed.
MAX_TIMED_FORMATS = 3
# A later candidate must be faster than the best so far by this factor, both as predicted and as measured.
CLEARLY_FASTER = 1.15
# Longer inputs are timed on their first rows only: from this length on, time is proportional to length.
MAX_TIMED_TOKENS = {"cpu": 2048, "cuda": 65536}


def fastest_candidate(layer: TargetLayer, choice: FormatCandidates, tokens: int) -> tuple[str, Paired]:
    """Time the leading candidates of a layer and return the fastest.

    Timing stops at the first candidate that is not predicted to be clearly faster than the best measured so
    far, so that neither a wrong prediction nor noise decides. It also stops if the machine is too busy.

    Args:
        layer: The layer to time.
        choice: The layer's candidates, the fastest prediction first.
        tokens: Rows of x.

    Returns:
        The kind of the fastest candidate, and its timing against the dense layer.
    """
    first, *others = choice.candidates[:MAX_TIMED_FORMATS]
    best, best_timing = first, time_against_dense(layer, first, choice.dense, tokens, choice.activation)
    for work in others:
        needed = CLEARLY_FASTER * best_timing.speedup
        if best_timing.busy or work == choice.dense or choice.predicted_speedup(work) < needed:
            break
        timing = time_against_dense(layer, work, choice.dense, tokens, choice.activation)
        if timing.speedup > needed and not timing.busy:
            best, best_timing = work, timing
    return best.kind, best_timing


@torch.no_grad()
def time_against_dense(
    layer: TargetLayer, work: WorkEstimate, dense: WorkEstimate, tokens: int, activation: str = "none"
) -> Paired:
    """Time a layer in the format of ``work`` (``mine``) and as the prepacked layer of ``dense`` (``other``).

    Both sides apply the activation. The seconds are for ``tokens`` rows of x, extrapolated beyond
    ``MAX_TIMED_TOKENS``.
    """
    linear, device = layer.linear, layer.linear.weight.device
    dtype = linear.weight.dtype
    timed = min(tokens, MAX_TIMED_TOKENS[device.type])
    # Random values: inf, NaN and denormals among the layer's weights would take a slow path.
    weight = torch.randn(linear.weight.shape, generator=torch.Generator().manual_seed(0)).to(device)
    x = torch.randn(timed, linear.in_features, generator=torch.Generator().manual_seed(1)).to(device, dtype)

    def side(work: WorkEstimate, mask: Tensor, options: dict[str, Any]) -> Callable[[], Tensor]:
        stored = stored_dtype(dtype, device.type, work.precision)
        packed = pack_as(weight, mask, stored, format=work.format, **options)
        run = ops.linear_in_precision_of_weight if work.precision else ops.linear
        return lambda: run(x, packed, linear.bias, activation)

    # A dense layer in int8 is one of vectors, which would leave pruned weights out.
    whole = layer.mask if dense.format == "dense" else torch.ones_like(layer.mask)
    options = {"tokens": timed} if dense.format == "dense" else dense.options
    sides = side(work, layer.mask, work.options), side(dense, whole, options)
    timing = paired_on(device, *sides)
    scale = tokens / timed
    return replace(timing, mine=timing.mine * scale, other=timing.other * scale)


def paired_on(device: torch.device, mine: Callable[[], object], other: Callable[[], object]) -> Paired:
    """Time two sides in turn, on a GPU in CUDA graphs."""
    if device.type == "cpu":
        return paired(mine, other)
    with torch.cuda.device(device):  # whose streams are captured
        return paired_on_gpu(mine, other)
