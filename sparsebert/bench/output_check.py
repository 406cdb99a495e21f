"""Comparison of every backend's outputs with those of the masked dense model, before anything is timed.

The error is max |output - reference| / max |reference| over the real tokens of all batches. The reference is
the masked dense model in plain torch, in float32 (float64 for a float64 workload). The tolerance depends only
on the precision of the arithmetic.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

TOLERANCES = {"float64": 1e-4, "float32": 1e-4, "float16": 2e-2, "bfloat16": 1e-1, "int8": 5e-1}


class OutputMismatchError(RuntimeError):
    """Outputs differ from the reference by more than the tolerance."""


@dataclass(frozen=True)
class OutputCheck:
    """Error of a side against the reference, and its tolerance."""

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
    """Compare a side's outputs with the reference.

    Args:
        side: Its name, for messages.
        answers: [sequences, tokens, hidden] for each batch. NaN or inf counts as an infinite error.
        reference: Like ``answers``.
        masks: [sequences, tokens] for each batch, 1 at real tokens and 0 at padding.
        precision: A key of ``TOLERANCES``.

    Raises:
        ValueError: The shapes differ.
    """
    error = largest = 0.0
    for ours, theirs, mask in zip(answers, reference, masks, strict=True):
        if ours.shape != theirs.shape:
            raise ValueError(f"{side} returns shape {tuple(ours.shape)}, the reference {tuple(theirs.shape)}")
        real = mask.bool()
        difference = (ours.double() - theirs.double())[real].abs()
        error = max(error, difference.max().item() if bool(difference.isfinite().all()) else float("inf"))
        largest = max(largest, theirs[real].abs().max().item())
    return OutputCheck(side, error / largest if largest else error, TOLERANCES[precision])


def require(checks: Sequence[OutputCheck]) -> None:
    """Raise ``OutputMismatchError`` with the name of each failed side."""
    failed = [str(check) for check in checks if not check.passed]
    if failed:
        raise OutputMismatchError(
            "outputs differ from the masked dense model, so nothing was timed: " + "; ".join(failed)
        )
