"""The decision for one layer of a plan: its candidate formats, the current format and its timing."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch

from sparsebert.cost.candidates import FormatCandidates, stored_dtype
from sparsebert.cost.mask_statistics import BlockStatistics
from sparsebert.cost.work import WorkEstimate, estimate_panel_work
from sparsebert.planning.plan import LayerPlan
from sparsebert.planning.target_layers import TargetLayer
from sparsebert_kernels.dtype_names import short_name
from sparsebert_kernels.formats.dense import prepacking_works
from sparsebert_kernels.timing import Paired

# The speed-up over prepacked dense that a sparse layer must reach, as a ratio of paired medians. Timings
# scatter by several percent, and models call their layers with other numbers of tokens than planned: a model
# whose layers were all timed as equal ran 4 % slower than dense.
LEAST_SPEEDUP = 1.05
# Layers of one shape and format are timed as one class if their stored weights differ by less than this
# factor.
CLASS_WIDTH = 1.25
# The plan suggests the smallest blocks that reach this share of the best predicted speed-up: small blocks
# cost less accuracy.
ENOUGH_OF_THE_BEST = 0.75


@dataclass
class LayerDecision:
    """The format of one layer, undecided until a timing or the cost model settles it.

    Attributes:
        layer: The layer.
        choice: The layer's candidates and their predicted times.
        work: The current candidate.
        requested: Whether the user named the format.
        timing: The current candidate (``mine``) against the dense layer (``other``), in seconds.
        busy: Whether the machine was too busy to time the layer.
        rejected: The candidate that was ruled out in favour of the dense layer because it gains too little.
    """

    layer: TargetLayer
    choice: FormatCandidates
    work: WorkEstimate
    requested: bool
    timing: Paired | None = None
    busy: bool = False
    rejected: WorkEstimate | None = None

    @property
    def dense(self) -> WorkEstimate:
        return self.choice.dense

    @property
    def device(self) -> torch.device:
        return self.layer.linear.weight.device

    def predicted(self, work: WorkEstimate) -> float | None:
        """Predict the seconds of a candidate; None if the cost model has no figures for its format."""
        return self.choice.predicted(work)

    def timing_class(self) -> tuple[Any, ...]:
        """Return the layer's class; layers of one class share one timing."""
        width = round(math.log(max(self.work.stored, 1)) / math.log(CLASS_WIDTH))
        dtype = self.layer.linear.weight.dtype
        kinds = tuple(sorted(work.kind for work in self.choice.candidates))
        shape, activation = tuple(self.layer.mask.shape), self.choice.activation
        return shape, self.work.kind, kinds, dtype, self.device, width, activation

    def settle_by_timing(self, kind: str, timing: Paired, trainable: bool) -> None:
        """Choose the fastest kind of the layer's class, or the dense layer if the speed-up is too small.

        The cost model decides instead if the machine was too busy for the timing.
        """
        self.timing = timing
        if timing.busy:
            self.settle_untimed(trainable)
            return
        self.work = next(work for work in self.choice.candidates if work.kind == kind)
        self._settle(timing.speedup, trainable)

    def settle_untimed(self, trainable: bool) -> None:
        """Let the cost model decide because the machine is too busy."""
        self.busy = True
        self.settle_by_costs(trainable)

    def settle_by_costs(self, trainable: bool) -> None:
        """Keep the current candidate, or choose the dense layer if the predicted speed-up is too small."""
        self._settle(self.choice.predicted_speedup(self.work), trainable)

    def _settle(self, speedup: float, trainable: bool) -> None:
        if speedup < LEAST_SPEEDUP and not trainable:
            self.rejected, self.work = self.work, self.dense

    def layer_plan(self, tokens: int, tolerance: str) -> LayerPlan:
        """Return the entry of the plan."""
        statistics, timing = self.choice.statistics, self.timing
        predicted, predicted_dense = self.predicted(self.work), self.predicted(self.dense)
        dense, measured = predicted_dense, None
        if timing:
            dense = timing.other
            measured = timing.other if self.rejected else timing.mine
        return LayerPlan(
            key=self.layer.key,
            shape=(statistics.rows, statistics.columns),
            sparsity=statistics.sparsity,
            format=self.work.format,
            predicted_us=_microseconds(predicted),
            measured_us=_microseconds(measured),
            dense_us=_microseconds(dense and dense * self.layer.shrinkage),
            nbytes=self.work.nbytes,
            dense_nbytes=self.layer.dense_nbytes,
            reason=self._reason(predicted, predicted_dense),
            tokens=tokens,
            block=self.work.block,
            removal_note=self.layer.removal_note,
            busy=self.busy,
            decided_by=self._decided_by(),
            dtype=self._dtype,
            precision=self.work.precision,
            tolerance=tolerance,
            dense_form=self._dense_form(),
        )

    @property
    def _dtype(self) -> str:
        return short_name(self.layer.linear.weight.dtype)

    def _dense_form(self) -> str:
        """Return the name of the fastest dense form of a CPU; "" on a GPU."""
        if self.choice.gpu:
            return ""
        dtype = stored_dtype(self.layer.linear.weight.dtype, "cpu", self.dense.precision)
        if dtype == torch.int8:
            return f"{self.dense.precision} of these kernels"
        name = short_name(dtype)
        return f"oneDNN {name}" if prepacking_works(dtype) else f"torch {name}"

    def _decided_by(self) -> str:
        if self.requested:
            return "user"
        if self.choice.statistics.full:
            return ""
        return "cost model" if self.busy or not self.timing else "timing"

    def _reason(self, predicted: float | None, dense: float | None) -> str:
        timing = None if self.busy else self.timing
        name = f"dense {self.dense.precision}".rstrip()
        if self.choice.activation != "none":
            name += f" with {self.choice.activation}"
        if self.requested:
            reason = "requested"
        elif self.choice.statistics.full:
            reason = "nothing is pruned"
        elif self.rejected:
            speedup = timing.speedup if timing else self.choice.predicted_speedup(self.rejected)
            verb = "measured" if timing else "predicted"
            reason = f"{self.rejected.format} {verb} {speedup:.2f}x {name}, less than {LEAST_SPEEDUP}x"
        elif self.work == self.dense:
            reason = f"no format is predicted to be faster{self._block_suggestion()}"
        elif timing:
            reason = f"measured {timing.speedup:.1f}x {name}"
        elif predicted and dense:
            reason = f"predicted {dense / predicted:.1f}x {name}"
        else:
            reason = "no cost figures: the format with the fewest stored weights"
        if self.busy:
            reason += (
                f"; measured {self.timing.speedup:.1f}x? {name}" if self.timing else "; too busy to time"
            )
        reason += self._precision_note()
        half = self.layer.linear.weight.dtype == torch.float16 and not self.choice.gpu
        return f"{reason}; computed in float32" if half else reason

    def _precision_note(self) -> str:
        """Return why the layer computes in its precision, if it was allowed a lower one; else ""."""
        if not self.choice.lower:
            return ""
        exact = [self.choice.predicted(each) for each in self.choice.candidates if not each.precision]
        lower = self.predicted(self.work)
        if not self.work.precision:
            return f"; no faster in {' or '.join(self.choice.lower)}"
        best = min((seconds for seconds in exact if seconds), default=None)
        gain = f" predicted {best / lower:.1f}x {self._dtype}" if best and lower else ""
        return f"; {self.work.precision}{gain}"

    def _block_suggestion(self) -> str:
        """Return the speed-up that a ticket of the same sparsity in whole blocks would reach on a GPU."""
        if not self.choice.gpu:
            return ""
        statistics = self.choice.statistics
        spread = BlockStatistics.spread(statistics.rows, statistics.columns, 1 - statistics.sparsity)
        stored = stored_dtype(self.layer.linear.weight.dtype, "cuda")
        gains = {
            w.block: self.choice.predicted_speedup(w) for w in estimate_panel_work(statistics, spread, stored)
        }
        enough = ENOUGH_OF_THE_BEST * max(gains.values())
        block = min((block for block in gains if block and gains[block] >= enough), key=math.prod)
        if gains[block] < 1:
            return ""
        return f"; as {block[0]}x{block[1]} blocks up to {gains[block]:.1f}x predicted"


def _microseconds(seconds: float | None) -> float | None:
    return None if seconds is None else seconds * 1e6
