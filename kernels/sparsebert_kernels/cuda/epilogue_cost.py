"""Instructions of the epilogues for each output element, read off compiled code; cost models count with them.

A thread issues them after its main loop, so that short loops are bound by them: a multiprocessor issues
``aot.targets.SCHEDULERS`` instructions of 32 lanes a cycle, and 16 lanes of the special functions (exp2,
reciprocal and square roots). ``tests/triton/test_epilogue_cost.py`` compiles the kernels and compares.
"""

from __future__ import annotations

# Bias, rounding, addresses and the store of a program of 128 tokens and 64 columns, by the first number of
# the compute capability. On Blackwell, sums are first copied from tensor memory.
BASE = {8: 4.3, 9: 4.3, 10: 6.4}
RESIDUAL = {8: 4.0, 9: 4.1, 10: 5.4}  # added by a residual
# Added by each activation where the result has half precision, and its special functions among them.
ACTIVATION = {"none": 0.0, "relu": 1.0, "gelu": 11.0, "gelu_tanh": 8.0, "tanh": 18.1}
SPECIAL = {"none": 0.0, "relu": 0.0, "gelu": 1.0, "gelu_tanh": 2.0, "tanh": 2.0}
SPECIAL_LANES = 16  # lanes of special functions that a multiprocessor computes a cycle


def instructions(activation: str, capability: int, *, residual: bool = False) -> float:
    """Return the instructions that a thread issues for an output element in half precision.

    Args:
        activation: A name in ``reference.ACTIVATIONS``.
        capability: First number of the compute capability; one that was not compiled counts as the nearest
            older one.
        residual: Whether a residual is added.
    """
    nearest = max((each for each in BASE if each <= capability), default=min(BASE))
    return BASE[nearest] + ACTIVATION[activation] + residual * RESIDUAL[nearest]
