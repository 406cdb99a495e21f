"""Random masks of an exact density."""

from __future__ import annotations

import torch
from torch import Tensor


def random_mask(
    shape: tuple[int, int], block: tuple[int, int], sparsity: float, generator: torch.Generator
) -> Tensor:
    """Return a bool mask that keeps round((1 - sparsity) n) of its n blocks, all equally likely.

    Args:
        shape: (out, in), multiples of ``block``.
        block: (rows, columns).
        sparsity: Share of pruned blocks.
        generator: Its device is the device of the mask.
    """
    units = shape[0] // block[0], shape[1] // block[1]
    count = units[0] * units[1]
    order = torch.randperm(count, generator=generator, device=generator.device)
    kept = torch.zeros(count, dtype=torch.bool, device=generator.device)
    kept[order[: round((1 - sparsity) * count)]] = True
    return kept.view(units).repeat_interleave(block[0], 0).repeat_interleave(block[1], 1)
