"""Packability: which linear layers can be packed, and why others cannot."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize, prune

from sparsebert.nn.packability import Packability


class Doubled(nn.Linear):
    """A linear layer of another kind."""


def parametrized(linear: nn.Linear) -> nn.Linear:
    parametrize.register_parametrization(linear, "weight", nn.Identity())
    return linear


def patched(linear: nn.Linear) -> nn.Linear:
    linear.forward = lambda x: x  # type: ignore[method-assign]
    return linear


def test_a_plain_layer_can_be_packed() -> None:
    linear = nn.Linear(4, 4)
    packability = Packability(nn.Sequential(linear))
    packability.require("0", linear)
    assert not packability.is_tied(linear)


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda: parametrized(nn.Linear(4, 4)), "0.weight is not a plain parameter"),
        (lambda: prune.identity(nn.Linear(4, 4), "weight"), "0.weight is not a plain parameter"),
        (lambda: Doubled(4, 4), "0 is a Doubled; only a plain nn.Linear can be packed"),
        (lambda: nn.Linear(4, 4, dtype=torch.complex64), "quantised or holds a special tensor"),
        (lambda: nn.Linear(4, 4, device="meta"), "0 is on the meta device: load its weights first"),
        (lambda: nn.Linear(0, 4), "0 has an empty weight, [4, 0]"),
        (lambda: patched(nn.Linear(4, 4)), "the forward method of 0 is patched"),
    ],
    ids=["parametrized", "pruned", "subclass", "dtype", "meta", "empty", "patched"],
)
@pytest.mark.filterwarnings("ignore:Initializing zero-element")
def test_other_layers_are_refused_with_the_reason(make: Callable[[], Any], reason: str) -> None:
    linear = make()
    with pytest.raises(ValueError, match=r"\w") as refusal:
        Packability(nn.Sequential(linear)).require("0", linear)
    assert reason in str(refusal.value)


def test_a_tied_weight_is_refused_with_the_other_name() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    first, second = model
    second.weight = first.weight
    packability = Packability(model)
    assert packability.is_tied(first)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"0\.weight is tied to 1\.weight: packing would untie them"):
        packability.require("0", first)  # type: ignore[arg-type]


def test_a_model_that_is_a_linear_layer_is_refused() -> None:
    linear = nn.Linear(4, 4)
    with pytest.raises(ValueError, match="the model itself is a linear layer"):
        Packability(linear).require("", linear)
