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


def random_panel_mask(
    shape: tuple[int, int], block: tuple[int, int], step: int, sparsity: float, generator: torch.Generator
) -> Tensor:
    """Return a bool mask of blocks; each panel of rows keeps whole k-steps, as the pruner rounds them.

    Args:
        shape: (out, in), multiples of ``block``.
        block: (rows, columns).
        step: Columns of a k-step, a multiple of the block's.
        sparsity: Share of pruned weights, met within one k-step of one panel.
        generator: Its device is the device of the mask.
    """
    panels, groups, per_step = shape[0] // block[0], shape[1] // block[1], step // block[1]
    steps = (1 - sparsity) * groups / per_step
    counts = torch.full((panels,), int(steps), device=generator.device)
    extra = round((steps - int(steps)) * panels)
    counts[torch.randperm(panels, generator=generator, device=generator.device)[:extra]] += 1
    kept = torch.zeros(panels, groups, dtype=torch.bool, device=generator.device)
    for row, count in zip(kept, counts.tolist(), strict=True):
        row[torch.randperm(groups, generator=generator, device=generator.device)[: count * per_step]] = True
    return kept.repeat_interleave(block[0], 0).repeat_interleave(block[1], 1)
