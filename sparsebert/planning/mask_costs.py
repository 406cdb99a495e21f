"""The predicted time of a matrix by its mask, in each way in which the encoder may run.

Allocation spends milliseconds with it: each matrix costs what the planner predicts for the form that it would
choose, which is dense where no packed form is faster.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from sparsebert.bert import resolve
from sparsebert.cost import gpu_roofline
from sparsebert.cost.candidates import FormatCandidates, format_candidates
from sparsebert.cost.cpu_cost import cost_model, with_lower_precisions
from sparsebert.cost.engine_cost import seconds_in_layout
from sparsebert.cost.precision import lower_precisions
from sparsebert.cost.work import WorkEstimate
from sparsebert.planning.encoder_plan import FP32, LAYERS, PAIRED, PAIRED_INT8
from sparsebert.planning.engine_choice import decide_encoder, predict_linear
from sparsebert.planning.layer_decision import LEAST_SPEEDUP
from sparsebert.planning.planner import fused_activations
from sparsebert_kernels.formats import RowPanelSparse

CPU = torch.device("cpu")
Times = dict[str, float]  # milliseconds, by way


@dataclass(frozen=True)
class MaskCosts:
    """Predicts the milliseconds of matrices by their masks.

    Attributes:
        dtype: The dtype of the matrices.
        tokens: Rows of x in a call.
        tolerance: The lowest precision in which they may compute.
        rest: Milliseconds of all else in the encoder, by way; 0 where they are unknown.
        dense: Milliseconds of the whole encoder in its fastest dense form.
        device: A GPU to predict for, instead of this machine's CPU.
        activations: What a GPU's kernels compute of the output of a matrix, by key.
    """

    dtype: torch.dtype
    tokens: int
    tolerance: str
    rest: Times
    dense: float
    device: gpu_roofline.Device | None = None
    activations: Mapping[str, str] = field(default_factory=dict)

    def of_mask(self, mask: Tensor, activation: str = "none") -> Times:
        """Return the milliseconds of a matrix with a mask, bool [out, in], by way.

        Args:
            mask: The mask.
            activation: What a GPU's kernels compute of the output; ignored on a CPU.
        """
        if self.device is not None:
            choice = format_candidates(mask, self.dtype, self.device, self.tokens, activation=activation)
            return {LAYERS: 1e3 * choice.costs.seconds(_settled(choice))}
        seconds = {}
        for way in self.rest:
            if way == LAYERS:
                choice = self._candidates(mask, self.tolerance)
                seconds[way] = choice.costs.seconds(_settled(choice))
            elif way == FP32:
                seconds[way] = _in_layout(choice := self._candidates(mask, "fp32"), [_settled(choice)])
            elif way == PAIRED:
                choice = self._candidates(mask, self.tolerance, RowPanelSparse.name)
                seconds[way] = _in_layout(choice, choice.candidates)
        if PAIRED_INT8 in self.rest:  # differs from the other by layers that are not pruned
            seconds[PAIRED_INT8] = seconds[PAIRED]
        return {way: 1e3 * each for way, each in seconds.items()}

    def _candidates(self, mask: Tensor, tolerance: str, format: str = "auto") -> FormatCandidates:
        return format_candidates(
            mask, self.dtype, CPU, self.tokens, format=format, measure=True, tolerance=tolerance
        )


def mask_costs(
    model: nn.Module, keys: Iterable[str], tokens: int, tolerance: str = "fp32", device: str | None = None
) -> MaskCosts:
    """Return the costs of the matrices of a model that are to be pruned.

    Args:
        model: The dense model; it is only read.
        keys: The keys of the matrices.
        tokens: Rows of x in a call.
        tolerance: The lowest precision in which they may compute. On a GPU, any below fp32 stands for bf16.
        device: A GPU to predict for, as for :func:`sparsebert.plan`: its linear layers alone.

    Raises:
        ValueError: There are no figures for the device.
    """
    linears: Mapping[str, Any] = {key: resolve(model, key) for key in keys}
    dtype = next(iter(linears.values())).weight.dtype
    if device is not None:
        figures = gpu_roofline.named(device)
        dtype = torch.bfloat16 if tolerance != "fp32" and dtype == torch.float32 else dtype
        costs = MaskCosts(dtype, tokens, tolerance, {LAYERS: 0.0}, 0.0, figures, fused_activations(model))
        return replace(costs, dense=_whole(costs, linears)[LAYERS])
    decision = decide_encoder(model, (), tokens=tokens, fuse=None, measure=True, tolerance=tolerance)
    predicted = decision.plan.predicted_us if decision is not None else {}
    if not predicted:  # nothing is known of what lies between the layers: timings tell
        costs = MaskCosts(dtype, tokens, tolerance, {LAYERS: 0.0}, 0.0)
        return replace(costs, dense=_whole(costs, linears)[LAYERS])
    dense = with_lower_precisions(cost_model(dtype, tokens), dtype, lower_precisions(dtype, tolerance))
    rest = {
        way: total / 1e3 - 1e3 * sum(predict_linear(linear, None, way, dense) for linear in linears.values())
        for way, total in predicted.items()
    }
    return MaskCosts(dtype, tokens, tolerance, rest, min(predicted.values()) / 1e3)


def _whole(costs: MaskCosts, linears: Mapping[str, Any]) -> Times:
    """Return the milliseconds of dense matrices."""
    kinds = [(linear.weight.shape, costs.activations.get(key, "none")) for key, linear in linears.items()]
    each = {kind: costs.of_mask(torch.ones(kind[0], dtype=torch.bool), kind[1]) for kind in set(kinds)}
    return {way: sum(each[kind][way] for kind in kinds) for way in costs.rest}


def _settled(choice: FormatCandidates) -> WorkEstimate:
    """Return the form that the planner would choose without timing it."""
    work = choice.candidates[0]
    return work if choice.predicted_speedup(work) >= LEAST_SPEEDUP else choice.dense


def _in_layout(choice: FormatCandidates, works: Iterable[WorkEstimate]) -> float:
    """Return the seconds of the fastest of some forms in an engine."""
    costs: Any = choice.costs
    return min(seconds_in_layout(costs, work, costs.seconds(work)) for work in works)
