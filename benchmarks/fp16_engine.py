"""The fp16 engine against the fp32 engine, for a row of `benchmarks.cpu_engine`."""

from __future__ import annotations

import copy
import statistics
import time
from typing import Any

import torch

from sparsebert import sparsify_
from sparsebert.bench.pruned_model import PrunedModel
from sparsebert.planning.encoder_plan import FP16, EncoderPlan
from sparsebert.planning.engine_choice import carried_encoder_plan, set_encoder_plan_
from sparsebert_kernels.timing import paired


@torch.inference_mode()
def ratio_to_fp32(pruned: PrunedModel, budget: float) -> tuple[float, bool]:
    """Return how many times as fast a pruned model is in fp16, and whether the machine was busy all the time.

    Args:
        pruned: The model; its first batch is computed.
        budget: Seconds of timed rounds.

    Raises:
        RuntimeError: The model does not run in the fp16 engine.
    """
    with torch.inference_mode(False):
        model = copy.deepcopy(pruned.model)
        in_fp32: Any = sparsify_(model, pruned.ticket, format="element", measure=False, fuse=True)
        in_fp16: Any = copy.deepcopy(in_fp32)
        set_encoder_plan_(in_fp16, EncoderPlan(FP16, "requested", decided_by="user"))
    batch = pruned.batches[0]
    timings = []
    start = time.monotonic()
    while not timings or time.monotonic() - start < budget:
        timings.append(paired(lambda: in_fp16(**batch), lambda: in_fp32(**batch)))
    plan = carried_encoder_plan(in_fp16)
    if plan is None or plan.way != FP16:
        raise RuntimeError(f"it ran as {plan}")
    quiet = [timing for timing in timings if not timing.busy]
    return statistics.median(timing.speedup for timing in quiet or timings), not quiet
