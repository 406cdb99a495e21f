"""Gradual magnitude, movement and soft movement against their published code, written out in numpy."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
import torch

from sparsebert.mask_learning.movement import GradualMagnitudeRule, MovementRule, SoftMovementRule
from sparsebert.mask_learning.rule import Goal
from tests.mask_learning.two_matrices import (
    FIRST,
    SECOND,
    SHAPES,
    Array,
    assert_equal,
    numbers,
    prunable_units,
    sigmoid,
    taken,
    transcribed,
)

GOAL = Goal(steps=8, warmup=1, density=Fraction(1, 4))
STEP = 3  # of a ramp from step 1 to step 6
BLOCKS = [(1, 1), (2, 2)]


def published_threshold(first: float, last: float) -> float:
    return last + (first - last) * (1 - (STEP - 1) / (8 - 3)) ** 3


def top_k(scores: Array, share: float) -> Array:
    """``TopKBinarizer``, but for k, which is rounded there to below."""
    mask = np.zeros(scores.size)
    mask[np.argsort(-scores.ravel())[: round(share * scores.size)]] = 1
    return mask.reshape(scores.shape)


@pytest.mark.parametrize("block", BLOCKS)
def test_a_step_of_movement(block: tuple[int, int]) -> None:
    given = numbers(block)
    kept = {key: top_k(scores, published_threshold(1, 0.25)) for key, scores in given.scores.items()}
    assert_equal(taken(MovementRule(), GOAL, STEP, given), transcribed(given, kept))


def test_a_step_of_movement_with_a_regularisation() -> None:
    """That of Static Model Pruning, which grows over the whole run."""
    given = numbers()
    kept = {key: top_k(scores, published_threshold(1, 0.25)) for key, scores in given.scores.items()}
    weight = 30 * (1 - (1 - STEP / 8) ** 3)
    penalty = weight * np.mean([sigmoid(scores).mean() for scores in given.scores.values()])
    gradients = {
        key: weight * sigmoid(scores) * (1 - sigmoid(scores)) / scores.size / 2
        for key, scores in given.scores.items()
    }
    rule = MovementRule(regularisation=30.0)
    assert_equal(taken(rule, GOAL, STEP, given), transcribed(given, kept, penalty, gradients))


def test_dead_weights_learn_their_scores_too() -> None:
    given = numbers()
    found = taken(MovementRule(), GOAL, STEP, given)
    for key in SHAPES:
        dead = ~found.masks[key]
        assert dead.any()
        assert found.score_gradients[key][dead].all()
        assert not found.weight_gradients[key][dead].any()


@pytest.mark.parametrize("block", BLOCKS)
def test_a_step_of_gradual_magnitude(block: tuple[int, int]) -> None:
    given = numbers(block)
    rows, columns = block
    kept = {}
    for key, weight in given.weights.items():
        tiles = np.abs(weight).reshape(weight.shape[0] // rows, rows, weight.shape[1] // columns, columns)
        kept[key] = top_k(tiles.mean((1, 3)), published_threshold(1, 0.25))
    found = taken(GradualMagnitudeRule(), GOAL, STEP, given)
    assert_equal(found, transcribed(given, kept, scored=False))


@pytest.mark.parametrize("block", BLOCKS)
def test_a_step_of_soft_movement(block: tuple[int, int]) -> None:
    given = numbers(block)
    threshold = published_threshold(0, 0.4)
    weight = 30 * threshold / 0.4
    kept = {key: (sigmoid(scores) > threshold).astype(float) for key, scores in given.scores.items()}
    assert 0 < kept[FIRST].mean() < 1
    penalty = weight * np.mean([sigmoid(scores).mean() for scores in given.scores.values()])
    gradients = {
        key: weight * sigmoid(scores) * (1 - sigmoid(scores)) / scores.size / 2
        for key, scores in given.scores.items()
    }
    rule = SoftMovementRule(threshold=0.4, regularisation=30.0)
    assert_equal(taken(rule, GOAL, STEP, given), transcribed(given, kept, penalty, gradients))


def test_movement_keeps_what_the_published_binarizer_keeps() -> None:
    """Where d * n is a whole number its rounding makes no difference."""
    scores = {key: torch.randn(shape) for key, shape in SHAPES.items()}
    for density in (Fraction(1, 4), Fraction(1, 2), Fraction(1)):
        masks = MovementRule().masks(scores, prunable_units(), Goal(8, 1, density), 8)
        for key, mask in masks.items():
            k = int(float(density) * mask.numel())
            expected = torch.zeros(mask.numel(), dtype=torch.bool)
            expected[scores[key].flatten().sort(descending=True).indices[:k]] = True
            assert torch.equal(mask.flatten(), expected)


def test_equal_scores_are_kept_in_order_and_exactly_as_many() -> None:
    """At the first step all are 0."""
    scores = {key: torch.zeros(shape) for key, shape in SHAPES.items()}
    for step, kept in ((0, 24), (1, 24), (6, 6), (8, 6)):
        for mask in MovementRule().masks(scores, prunable_units(), GOAL, step).values():
            assert mask.flatten().tolist() == [True] * kept + [False] * (24 - kept)


def test_the_scope_says_who_competes() -> None:
    scores = {FIRST: torch.ones(6, 4), SECOND: torch.zeros(4, 6)}
    in_all = MovementRule().masks(scores, prunable_units(scope="global"), GOAL, 8)
    assert [int(mask.sum()) for mask in in_all.values()] == [12, 0]
    in_each = MovementRule().masks(scores, prunable_units(), GOAL, 8)
    assert [int(mask.sum()) for mask in in_each.values()] == [6, 6]


def test_soft_movement_leaves_the_floor_of_each_matrix() -> None:
    """int(0.005 n) + 1 of the highest, even where all are below the threshold."""
    scores = {key: torch.linspace(-9, -5, 24).view(shape) for key, shape in SHAPES.items()}
    for floor, kept in ((0.005, 1), (0.25, 7)):
        for mask in SoftMovementRule(floor=floor).masks(scores, prunable_units(), GOAL, 8).values():
            assert mask.flatten().tolist() == [False] * (24 - kept) + [True] * kept


def test_soft_movement_begins_with_everything_and_no_penalty() -> None:
    scores = {key: torch.zeros(shape) for key, shape in SHAPES.items()}
    rule = SoftMovementRule()
    assert all(mask.all() for mask in rule.masks(scores, prunable_units(), GOAL, 0).values())
    assert rule.penalty(scores, GOAL, 0) == 0
    assert rule.penalty(scores, GOAL, 8) == pytest.approx(400 * 0.5)


def test_a_score_that_is_nan_is_refused() -> None:
    scores = {key: torch.full(shape, torch.nan) for key, shape in SHAPES.items()}
    for rule in (MovementRule(), SoftMovementRule()):
        with pytest.raises(ValueError, match="NaN"):
            rule.masks(scores, prunable_units(), GOAL, 8)


def test_defaults_are_those_of_the_published_code() -> None:
    assert (
        MovementRule().scores_learning_rate,
        MovementRule().initial_warmup,
        MovementRule().final_warmup,
    ) == (
        0.01,
        1,
        2,
    )
    assert MovementRule().regularisation == 0
    soft = SoftMovementRule()
    assert (soft.threshold, soft.regularisation, soft.floor) == (0.1, 400, 0.005)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scores_learning_rate": 0.0}, "scores_learning_rate must be positive, got 0.0"),
        ({"threshold": 1.0}, "threshold must be between 0 and 1, got 1.0"),
        ({"regularisation": -1.0}, "regularisation must be at least 0, got -1.0"),
        ({"floor": 1.0}, "floor must be below 1, got 1.0"),
        ({"final_warmup": -1.0}, "final_warmup must be at least 0"),
    ],
)
def test_options_that_make_no_sense_are_refused(options: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SoftMovementRule(**options)


@pytest.mark.parametrize(
    ("steps", "warmup", "phases"),
    [(100, 20, (20, 60)), (100, 0, (10, 80)), (37, 0, (4, 29)), (4, 0, (0, 4))],
)
def test_the_density_warms_up_without_a_warm_up_of_the_learning_rate(
    steps: int, warmup: int, phases: tuple[int, int]
) -> None:
    """By tenths of the run then: 1 and 2 of them."""
    ramp = MovementRule(initial_warmup=1, final_warmup=2).ramp(Goal(steps, warmup, Fraction(1, 4)))
    assert (ramp.begin, ramp.end) == phases


def test_without_phases_the_ramp_spans_the_run() -> None:
    ramp = MovementRule(initial_warmup=0, final_warmup=0).ramp(Goal(7, 0, Fraction(1, 4)))
    assert (ramp.begin, ramp.end) == (0, 7)
