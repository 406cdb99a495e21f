"""Trained coefficients: parameters that scale units, folded into the weights at the end."""

from __future__ import annotations

import copy
from collections import OrderedDict

import pytest
import torch
from torch import nn

pytest.importorskip("transformers")

from sparsebert.pruning.gates import GateSite
from sparsebert.training.unit_coefficients import TrainedCoefficients


def test_coefficients_scale_the_model_before_and_after_they_are_folded() -> None:
    model = nn.Sequential(OrderedDict(down=nn.Linear(3, 2)))
    plain, x, scales = copy.deepcopy(model), torch.randn(4, 3), torch.tensor([2.0, 0.0, -1.0])
    coefficients = TrainedCoefficients(model, {"up": GateSite("down", "neuron", 1)}, penalty=0.5)
    assert torch.equal(model(x), plain(x))
    with torch.no_grad():
        coefficients.values["up"].copy_(scales)
    torch.testing.assert_close(model(x), plain(x * scales))
    coefficients.fold_()
    assert list(model.state_dict()) == list(plain.state_dict())
    torch.testing.assert_close(model(x), plain(x * scales))
