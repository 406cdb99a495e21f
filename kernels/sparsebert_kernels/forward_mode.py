"""Forward-mode derivatives (``torch.func.jvp``, ``torch.autograd.forward_ad``), which no kernel computes.

torch runs an operator without a forward-mode formula on the primal alone and drops the tangent without a
word. Where a tangent may be present, the public functions therefore compute with differentiable torch
operations, and the operators refuse to run.
"""

from __future__ import annotations

from torch.autograd import forward_ad


def is_active() -> bool:
    """Return whether a forward-mode derivative is being computed, also inside ``jvp`` and ``jacfwd``."""
    return forward_ad._current_level >= 0


def refuse(operator: str) -> None:
    """Raise ValueError if a forward-mode derivative is being computed, which ``operator`` would drop."""
    if is_active():
        raise ValueError(
            f"{operator} has no forward-mode derivative: call ops.linear or masked.masked_linear, "
            "with the forward pass inside jvp or dual_level too"
        )
