"""Masks of the structures that formats are for, and models of linear layers that have them."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from sparsebert import Ticket
from sparsebert_kernels import cpu

needs_native = pytest.mark.skipif(not cpu.available(), reason="sparse formats need the native library")


def model_with(*masks: Tensor) -> tuple[nn.Sequential, Ticket]:
    model = nn.Sequential(*(nn.Linear(mask.shape[1], mask.shape[0]) for mask in masks))
    return model, Ticket({str(i): mask for i, mask in enumerate(masks)})


def random_mask(density: float, rows: int = 768, columns: int = 768, height: int = 1) -> Tensor:
    return (torch.rand(rows // height, columns) < density).repeat_interleave(height, 0)


def dead_rows(density: float) -> Tensor:
    mask = torch.zeros(768, 768, dtype=torch.bool)
    mask[torch.randperm(768)[: int(768 * density)]] = True
    return mask
