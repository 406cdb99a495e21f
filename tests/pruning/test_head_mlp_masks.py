"""Masks of heads and MLPs, one bit a unit, and their tickets."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("transformers")

from sparsebert.pruning.head_mlp_masks import UnitMasks
from tests.pruning.gated_models import HEADS, LAYERS, build


def test_whole_masks_keep_every_head_and_mlp() -> None:
    model = build("Bert")
    masks = UnitMasks.whole(model)
    assert tuple(masks.heads.shape) == (LAYERS, HEADS)
    assert tuple(masks.mlps.shape) == (LAYERS,)
    assert masks.ticket(model, {}).sparsity == 0


def test_a_ticket_gives_the_masks_that_it_was_made_of() -> None:
    model = build("Bert")
    masks = UnitMasks.whole(model)
    masks.heads[0, 1] = masks.mlps[LAYERS - 1] = False
    read = UnitMasks.of(masks.ticket(model, {}), model)
    assert torch.equal(read.heads, masks.heads)
    assert torch.equal(read.mlps, masks.mlps)
