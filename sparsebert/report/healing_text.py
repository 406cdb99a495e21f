"""Lines about a healing."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def healing_lines(record: Mapping[str, Any]) -> list[str]:
    """Return the result of a healing in lines.

    Args:
        record: A record of kind "heal".
    """
    texts = record["texts"]
    work = (
        f"{record['steps']} steps, {record['tokens']} tokens, {record['seconds']:.0f} s, learning rate "
        f"{record['learning_rate']:.2g}, products in {record['precision']}"
    )
    if not record["healed"]:
        return [work, "no state was better on the held-out texts: the weights are those of the start"]
    return [
        work,
        f"held-out loss {record['loss_before']:.4f} -> {record['loss_after']:.4f} ({texts['validation']} "
        f"texts), at step {record['best_step']}",
        f"cosine to the dense model's {record['measure']} {record['agreement_before']:.4f} -> "
        f"{record['agreement_after']:.4f} ({texts['judge']} other texts), {record['sparsity']:.2%} sparse",
    ]
