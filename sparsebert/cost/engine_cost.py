"""The time of whole encoders: their linear layers, and what lies between them."""

from __future__ import annotations

from sparsebert.cost.cpu_cost import CpuCostModel
from sparsebert.cost.work import WorkEstimate

# Share of the time for reading and writing features that remains where activations stay in the kernels'
# layout.
LINES_IN_LAYOUT = 0.25
# Time of the native dense kernel relative to oneDNN's, both in fp32.
DENSE_IN_LAYOUT = 1.1
# Seconds for attention, LayerNorms, residuals and activations of a layer, for each token and feature: in
# torch, and in an engine; on one core with AVX-512, at 128 tokens a sequence.
BETWEEN_IN_TORCH, BETWEEN_IN_LAYOUT = 8e-9, 2e-9


def seconds_in_layout(costs: CpuCostModel, work: WorkEstimate, seconds: float) -> float:
    """Predict the seconds of a layer in the fp32 engine, from ``seconds`` as a layer by itself."""
    cost = costs.costs.get(work.cost_kind)
    if work.format == "dense":
        return DENSE_IN_LAYOUT * seconds
    if cost is None:
        return seconds
    return seconds - cost.fixed - (1 - LINES_IN_LAYOUT) * cost.per_line * work.lines * costs.tokens


def seconds_between(hidden: int, tokens: int, *, in_layout: bool) -> float:
    """Predict the seconds of everything but the linear layers, in one layer of an encoder."""
    return (BETWEEN_IN_LAYOUT if in_layout else BETWEEN_IN_TORCH) * hidden * tokens
