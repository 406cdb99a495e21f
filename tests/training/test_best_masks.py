"""Mixed precision and the judgement of masks."""

from __future__ import annotations

import pytest
from torch import nn

pytest.importorskip("transformers")

from sparsebert.training.best_masks import _in_full_precision


def test_a_judgement_sees_the_plain_forward_and_leaves_the_mixed_one() -> None:
    model = nn.Linear(2, 2)
    model.forward = mixed = lambda x: None
    with _in_full_precision(model):
        assert "forward" not in vars(model)
    assert model.forward is mixed


def test_a_model_without_mixed_precision_stays_as_it_is() -> None:
    model = nn.Linear(2, 2)
    with _in_full_precision(model):
        pass
    assert "forward" not in vars(model)
