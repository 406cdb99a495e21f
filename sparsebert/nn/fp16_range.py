"""Encoders in fp16 whose values leave its range: they compute in fp32, in that call and from then on."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

from torch import Tensor

from sparsebert_kernels.cpu.encoder import BeyondFp16

Run = Callable[[], tuple[Tensor, Tensor | None]]
# The tolerances of a fused module in the fp16 engine, and once its values have left the range.
FP16, FP32 = "fp16", "fp32"
LEFT_RANGE = "values inside the encoder are beyond fp16's range (65504)"


def within_range(module: Any, run: Run) -> tuple[Tensor, Tensor | None]:
    """Return ``run()``, in fp32 if fp16 cannot hold values inside the encoder.

    A warning says so once. Where the result is not finite in fp32 either, fp16 is not the cause, and later
    calls compute in fp16 as before.

    Args:
        module: The fused module that runs the layers; its tolerance becomes "fp32".
        run: Runs the layers with the module's tolerance, and returns the states and the pooler's, if any.
    """
    try:
        return run()
    except BeyondFp16:
        vars(module)["tolerance"] = FP32
    states, pooled = run()
    if not bool(states.isfinite().all()):
        vars(module)["tolerance"] = FP16
        return states, pooled
    warnings.warn(
        f"{LEFT_RANGE}: the fused encoder computes in fp32 from now on", RuntimeWarning, stacklevel=6
    )
    return states, pooled


def left_range(module: Any, tolerance: str) -> bool:
    """Whether a module that was fused with a tolerance has left fp16 for fp32."""
    return tolerance == FP16 and vars(module).get("tolerance", FP32) == FP32
