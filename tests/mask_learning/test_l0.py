"""L0 regularisation against the published layer, written out in numpy."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
import torch
from torch import nn

from sparsebert.mask_learning.l0 import HardConcreteRule
from sparsebert.mask_learning.masked_layers import GatedLinear
from sparsebert.mask_learning.rule import Goal
from sparsebert.pruning.granularity import parse_granularity
from tests.mask_learning.two_matrices import (
    SHAPES,
    assert_equal,
    numbers,
    prunable_units,
    sigmoid,
    taken,
    transcribed,
)

GOAL = Goal(steps=8, warmup=0, density=Fraction(1))
BETA, LOW, HIGH = 2 / 3, -0.1, 1.1


@pytest.mark.parametrize("block", [(1, 1), (2, 2)])
def test_a_step(block: tuple[int, int]) -> None:
    given = numbers(block, spread=2.0)
    random = np.random.default_rng(1)
    uniform = {key: random.uniform(size=each.shape) for key, each in given.scores.items()}
    gates, slopes, gradients, opened = {}, {}, {}, {}
    for key, scores in given.scores.items():
        u = np.clip(uniform[key], 1e-4, 1 - 1e-4)
        s = sigmoid((np.log(u) - np.log(1 - u) + scores) / BETA)
        stretched = s * (HIGH - LOW) + LOW
        gates[key] = np.clip(stretched, 0, 1)
        inside = (stretched > 0) & (stretched < 1)
        slopes[key] = inside * (HIGH - LOW) * s * (1 - s) / BETA
        opened[key] = sigmoid(scores - BETA * np.log(-LOW / HIGH))
        gradients[key] = 125 * opened[key] * (1 - opened[key]) / scores.size / 2
    assert {0.0, 1.0} < set(np.concatenate([each.ravel() for each in gates.values()]).round(9))
    penalty = 125 * np.mean([each.mean() for each in opened.values()])
    expected = transcribed(given, gates, penalty, gradients, slopes=slopes)
    found = taken(HardConcreteRule(), GOAL, 3, given, uniform=uniform)
    # The masks are those of the trained model, not of the gates that were drawn.
    for key, scores in given.scores.items():
        assert np.array_equal(found.masks[key], np.kron(scores > np.log(1 / 11), np.ones(block)) > 0)
        expected.masks[key] = found.masks[key]
    assert_equal(found, expected)


def test_the_trained_model_s_gates_are_real_numbers() -> None:
    rule = HardConcreteRule()
    scores = torch.tensor([-9.0, float(np.log(1 / 11)) - 1e-3, float(np.log(1 / 11)) + 1e-3, 0.0, 2.197, 9.0])
    expected = np.clip(sigmoid(scores.double().numpy()) * 1.2 - 0.1, 0, 1)
    np.testing.assert_allclose(rule.gates(scores, None).numpy(), expected, atol=1e-6)
    assert (rule.gates(scores, None) > 0).tolist() == [False, False, True, True, True, True]


def test_a_layer_draws_in_training_only() -> None:
    linear = nn.Linear(4, 6)
    scores = nn.Parameter(torch.zeros(6, 4))
    layer = GatedLinear(linear, scores, parse_granularity("element"), True, HardConcreteRule())
    layer.set_uniform(torch.full((6, 4), 0.9))
    x = torch.randn(3, 4)
    assert torch.equal(layer.eval().gates(), torch.full((6, 4), 0.5))
    torch.testing.assert_close(layer(x), x @ (0.5 * linear.weight).T + linear.bias)
    assert layer.train().gates().min() > 0.9


def test_it_begins_open() -> None:
    scores = {key: torch.full(shape, HardConcreteRule.first_score) for key, shape in SHAPES.items()}
    rule = HardConcreteRule()
    assert all(mask.all() for mask in rule.masks(scores, prunable_units(), GOAL, 0).values())
    assert float(rule.gates(torch.tensor(HardConcreteRule.first_score), None)) == pytest.approx(
        0.98, abs=1e-4
    )


def test_defaults_are_those_of_the_published_code() -> None:
    rule = HardConcreteRule()
    assert (rule.scores_learning_rate, rule.regularisation, rule.first_score) == (0.1, 125, 2.197)


def test_a_score_that_is_nan_is_refused() -> None:
    scores = {key: torch.full(shape, torch.nan) for key, shape in SHAPES.items()}
    with pytest.raises(ValueError, match="NaN"):
        HardConcreteRule().masks(scores, prunable_units(), GOAL, 0)
