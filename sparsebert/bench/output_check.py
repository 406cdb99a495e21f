"""No figure before the answers agree: every side against the masked dense model.

Error of a side = max |answer - reference| / max |reference| over the real tokens of all batches, where the
reference is the masked dense model in float32 (float64 for a float64 workload) through plain torch. The
tolerance depends on the arithmetic a side computes in, never on who computes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

TOLERANCES = {"float64": 1e-4, "float32": 1e-4, "float16": 2e-2, "bfloat16": 1e-1, "int8": 5e-1}


class OutputMismatchError(RuntimeError):
    """A side's answers differ by more than its tolerance, so its speed means nothing."""


@dataclass(frozen=True)
class OutputCheck:
    """How far a side is from the reference, and how far it may be."""

    side: str
    error: float
    tolerance: float

    @property
    def passed(self) -> bool:
        return self.error <= self.tolerance

    def record(self) -> dict[str, float]:
        return {"error": self.error, "tolerance": self.tolerance}

    def __str__(self) -> str:
        sign = "<=" if self.passed else ">"
        return f"{self.side}: error {self.error:.2e} {sign} tolerance {self.tolerance:.0e}"


def compare(
    side: str,
    answers: Sequence[torch.Tensor],
    reference: Sequence[torch.Tensor],
    masks: Sequence[torch.Tensor],
    *,
    precision: str,
) -> OutputCheck:
    """OutputCheck on `answers`, [sequences, tokens, hidden] a batch; `masks` is 1 at real tokens, else 0.

    A NaN or infinite answer is an infinite error. Raises ValueError where the shapes differ.
    """
    error = largest = 0.0
    for ours, theirs, mask in zip(answers, reference, masks, strict=True):
        if ours.shape != theirs.shape:
            raise ValueError(f"{side} answers {tuple(ours.shape)}, the reference {tuple(theirs.shape)}")
        real = mask.bool()
        difference = (ours.double() - theirs.double())[real].abs()
        error = max(error, difference.max().item() if bool(difference.isfinite().all()) else float("inf"))
        largest = max(largest, theirs[real].abs().max().item())
    return OutputCheck(side, error / largest if largest else error, TOLERANCES[precision])


def require(checks: Sequence[OutputCheck]) -> None:
    """Raise OutputMismatchError naming every side that failed."""
    failed = [str(check) for check in checks if not check.passed]
    if failed:
        raise OutputMismatchError(
            "the answers disagree with the masked dense model, so nothing was timed: " + "; ".join(failed)
        )
