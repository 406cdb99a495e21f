"""The tokens that a plan is made for: those of the caller, else a number at which the device can gain."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from sparsebert.cost.default_tokens import default_tokens, on_gpu, tokens_after_move


def model_on(device: str) -> Any:
    """Return what a model on this device shows of itself."""
    return SimpleNamespace(parameters=lambda: iter([SimpleNamespace(device=torch.device(device))]))


@pytest.mark.parametrize(
    ("device", "tokens"), [("cuda", 4096), ("cuda:1", 4096), ("cpu", 128), ("meta", 128)]
)
def test_a_gpu_gets_4096_by_default(device: str, tokens: int) -> None:
    assert default_tokens(on_gpu(model_on(device))) == tokens


def test_a_model_without_parameters_is_on_no_gpu() -> None:
    assert not on_gpu(nn.Identity())


def test_only_the_default_of_a_cpu_changes_when_a_model_moves_to_a_gpu() -> None:
    assert tokens_after_move(128, gpu=True) == 4096
    assert tokens_after_move(512, gpu=True) == 512
    assert tokens_after_move(128, gpu=False) == 128
    assert tokens_after_move(4096, gpu=False) == 4096
