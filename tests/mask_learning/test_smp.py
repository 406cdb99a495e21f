"""Static Model Pruning against its paper and its released code, written out in numpy."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from sparsebert.mask_learning.rule import Goal, PrunableUnits
from sparsebert.mask_learning.smp import (
    Mask,
    Over,
    StaticModelPruningRule,
)
from sparsebert.pruning.unit_groups import unit_groups
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

GOAL = Goal(steps=12, warmup=0, density=Fraction(1, 4))
STEP = 3  # of a ramp over the first 7 of 12 steps
DENSITY = 0.25 + 0.75 * (1 - 3 / 7) ** 3
SCOPES = {Mask.LOCAL: "matrix", Mask.SHARED: "type", Mask.GLOBAL: "global", Mask.THRESHOLD: "matrix"}


def top(scores: Array, count: int) -> Array:
    mask = np.zeros(scores.size)
    mask[np.argsort(-scores.ravel())[:count]] = 1
    return mask.reshape(scores.shape)


def kept_by(mask: Mask, scores: dict[str, Array], compat: bool, temperature: float) -> dict[str, Array]:
    """Units kept in a step: the nearest number of them, by the released code rounded to below."""
    count = int if compat else round
    if mask is Mask.LOCAL:
        return {key: top(each, count(DENSITY * each.size)) for key, each in scores.items()}
    if mask is Mask.GLOBAL:
        whole = np.concatenate([each.ravel() for each in scores.values()])
        chosen = np.split(top(whole, round(DENSITY * whole.size)), [scores[FIRST].size])
        return {key: part.reshape(scores[key].shape) for key, part in zip(scores, chosen, strict=True)}
    if mask is Mask.THRESHOLD:
        threshold = 0.5 * (1 - (1 - 3 / 7) ** 3)
        return {key: (sigmoid(each) > threshold).astype(float) for key, each in scores.items()}
    rates = {key: sigmoid(each / temperature).mean() for key, each in scores.items()}
    shares = {key: rate / sum(rates.values()) * DENSITY * 2 for key, rate in rates.items()}
    assert max(shares.values()) < 1
    if compat:
        return {key: top(each, int(shares[key] * each.size)) for key, each in scores.items()}
    # What rounding to below leaves of the sum goes to the largest remainders.
    wanted = {key: shares[key] * scores[key].size for key in scores}
    counts = {key: int(each) for key, each in wanted.items()}
    for _ in range(round(sum(wanted.values())) - sum(counts.values())):
        counts[max(counts, key=lambda key: wanted[key] - counts[key])] += 1
    return {key: top(scores[key], counts[key]) for key in scores}


@pytest.mark.parametrize("block", [(1, 1), (2, 2)])
@pytest.mark.parametrize("compat", [False, True])
@pytest.mark.parametrize("mask", list(Mask))
def test_a_step(mask: Mask, compat: bool, block: tuple[int, int]) -> None:
    given = numbers(block)
    temperature = 1.0 if compat else 2.0
    own = {"temperature": temperature, "ramp_steps": 7, "threshold": 0.5}
    rule = StaticModelPruningRule(mask=mask, smp_compat=compat, **own)
    weight = 400 * (1 - (1 - 3 / 12) ** 3)
    penalty = weight * np.mean([sigmoid(each).mean() for each in given.scores.values()])
    slope = {key: sigmoid(each) * (1 - sigmoid(each)) for key, each in given.scores.items()}
    gradients = {key: weight * each / each.size / 2 for key, each in slope.items()}
    kept = kept_by(mask, given.scores, compat, temperature)
    found = taken(rule, GOAL, STEP, given, SCOPES[mask])
    assert_equal(found, transcribed(given, kept, penalty, gradients, trains_weights=False))
    assert not found.weight_gradients


def test_the_penalty_is_a_mean_of_means() -> None:
    """Every matrix counts the same, however large, so a score of a small one feels more."""
    scores = {FIRST: torch.zeros(2, 2), SECOND: torch.full((10, 10), 9.0)}
    goal = Goal(10, 0, Fraction(1, 2))
    found = StaticModelPruningRule().penalty(scores, goal, 10)
    assert found is not None
    assert float(found) == pytest.approx(400 * (0.5 + sigmoid(np.float64(9.0))) / 2)


@pytest.mark.parametrize(("over", "end"), [(Over.RUN, 10), (Over.DENSITY, 4)])
def test_the_penalty_grows_from_0_to_1(over: Over, end: int) -> None:
    """1 - (1 - t/T)^3, never the ratio of densities, which would explode at the beginning."""
    scores = {FIRST: torch.zeros(2, 2)}
    rule = StaticModelPruningRule(ramp_steps=4, regularisation_over=over)
    for step in range(11):
        expected = 200 * (1 - (1 - min(step / end, 1)) ** 3)
        assert float(rule.penalty(scores, Goal(10, 0, Fraction(1, 2)), step) or 0) == pytest.approx(expected)


LAYERS = {f"encoder.layer.{i}.attention.self.query": torch.Size((40, 40)) for i in range(12)}


def twelve(rates: Array) -> tuple[dict[str, Tensor], PrunableUnits]:
    """Twelve matrices of one type whose mean sigma(S) are these."""
    generator = torch.Generator().manual_seed(0)
    scores = {}
    for (key, shape), rate in zip(LAYERS.items(), rates, strict=True):
        noise = torch.rand(shape, generator=generator, dtype=torch.float64) * 1e-3
        scores[key] = torch.logit(torch.tensor(rate) * (1 - noise + noise.mean()), eps=1e-12)
    return scores, PrunableUnits(
        unit_groups("element", None, LAYERS, None), dict.fromkeys(LAYERS, "query"), "type"
    )


def density_of(masks: dict[str, Tensor]) -> float:
    return sum(int(mask.sum()) for mask in masks.values()) / sum(mask.numel() for mask in masks.values())


@pytest.mark.parametrize(("asked", "realised"), [("0.7", 0.658), ("0.8", 0.708)])
def test_what_the_released_code_loses_is_given_to_others(asked: str, realised: float) -> None:
    """Rates from 0.05 to 0.5 over twelve layers: shares above 1 are lost there, and here they are not."""
    scores, found = twelve(np.linspace(0.05, 0.5, 12))
    goal = Goal(10, 0, Fraction(asked))
    options: dict[str, Any] = {"ramp_steps": 5, "temperature": 1.0}
    lost = StaticModelPruningRule(smp_compat=True, **options).masks(scores, found, goal, 10)
    assert density_of(lost) == pytest.approx(realised, abs=1e-3)
    exact = StaticModelPruningRule(**options).masks(scores, found, goal, 10)
    assert density_of(exact) == float(asked)


@pytest.mark.parametrize("density", ["0.03", "0.1", "0.5", "0.8", "0.99"])
def test_the_density_is_exact_whatever_the_rates(density: str) -> None:
    for seed in range(5):
        scores, found = twelve(np.random.default_rng(seed).uniform(0.01, 0.99, 12))
        masks = StaticModelPruningRule().masks(scores, found, Goal(10, 0, Fraction(density)), 10)
        assert sum(int(mask.sum()) for mask in masks.values()) == round(Fraction(density) * 12 * 1600)


def test_at_the_beginning_every_matrix_has_the_density() -> None:
    scores = {key: torch.zeros(shape) for key, shape in LAYERS.items()}
    _, found = twelve(np.full(12, 0.5))
    masks = StaticModelPruningRule().masks(scores, found, Goal(10, 0, Fraction(1, 4)), 10)
    assert {int(mask.sum()) for mask in masks.values()} == {400}


def test_scores_that_underflow_count_as_equal() -> None:
    scores = {key: torch.full(shape, -1e4) for key, shape in LAYERS.items()}
    _, found = twelve(np.full(12, 0.5))
    masks = StaticModelPruningRule().masks(scores, found, Goal(10, 0, Fraction(1, 4)), 10)
    assert density_of(masks) == 0.25


def test_units_of_one_size_are_counted_and_others_weighed() -> None:
    """Blocks of 2x2 make 12 weights of 48 exact; blocks of 4x3, smaller at an edge, come near them."""
    generator = torch.Generator().manual_seed(0)
    for block, expected in (((2, 2), 12), ((4, 3), pytest.approx(12, abs=8))):
        units = unit_groups("block", block, SHAPES, None)
        found = PrunableUnits(units, dict.fromkeys(SHAPES, "query"), "type")
        scores = {group.name: torch.randn(group.grid, generator=generator) for group in units}
        masks = StaticModelPruningRule().masks(scores, found, GOAL, 12)
        whole = {key: mask for group in units for key, mask in group.expand(masks[group.name]).items()}
        assert sum(int(mask.sum()) for mask in whole.values()) == expected


def test_defaults() -> None:
    rule = StaticModelPruningRule()
    assert (rule.scores_learning_rate, rule.regularisation, rule.mask) == (0.02, 400, Mask.SHARED)
    assert rule.ramp(Goal(12, 0, Fraction(1, 10))).end == 7


@pytest.mark.parametrize(("density", "end"), [("0.8", 3500), ("0.7", 5250), ("0.5", 43630), ("0.03", 43630)])
def test_the_ramp_of_the_released_code(density: str, end: int) -> None:
    """12 epochs of MNLI in batches of 64 are 73,630 steps."""
    rule = StaticModelPruningRule(smp_compat=True)
    assert rule.ramp(Goal(73630, 0, Fraction(density))).end == end


@pytest.mark.parametrize(
    ("task", "density", "taught", "ramp", "penalty", "temperature"),
    [
        ("mnli", "0.5", False, 43630, 73630, 3),
        ("mnli", "0.5", True, 43630, 73630, 1),
        ("mnli", "0.8", False, 3500, 73630, 4),
        ("qqp", "0.5", False, 43630, 73630, 1),
        ("squad", "0.5", False, 5000, 73630, 4),
        ("squad", "0.5", True, 68630, 73630, 1),
        ("squad", "0.7", False, 5000, 73630, 4),
        ("squad", "0.1", False, 68630, 73630, 1),
        ("squad", "0.03", True, 22650, 27660, 1),
    ],
)
def test_what_the_released_scripts_set_for_a_task(
    task: str, density: str, taught: bool, ramp: int, penalty: int, temperature: float
) -> None:
    """``run.sh`` and ``run_squad.sh`` with ``_mag`` in the run's name."""
    goal = Goal(73630, 0, Fraction(density), task, taught)
    rule = StaticModelPruningRule(smp_compat=True)
    assert rule.ramp(goal).end == ramp
    grown = rule.penalty({FIRST: torch.zeros(2, 2)}, goal, 9000)
    assert float(grown or 0) == pytest.approx(200 * (1 - (1 - 9000 / penalty) ** 3))
    scores, found = twelve(np.linspace(0.05, 0.5, 12))
    drawn = rule.masks(scores, found, goal, 73630)
    same = StaticModelPruningRule(smp_compat=True, temperature=temperature).masks(scores, found, goal, 73630)
    assert all(torch.equal(drawn[key], same[key]) for key in same)
    other = StaticModelPruningRule(smp_compat=True, temperature=temperature + 1).masks(
        scores, found, goal, 73630
    )
    assert any(not torch.equal(drawn[key], other[key]) for key in other)
    own = StaticModelPruningRule(smp_compat=True, ramp_steps=7, temperature=2.0)
    assert own.ramp(goal).end == 7


def test_where_the_released_code_crashes_the_default_trains() -> None:
    """SST-2 at any density below 0.7: its ramp would end before it begins."""
    goal = Goal(12636, 0, Fraction(1, 2))
    with pytest.raises(ValueError, match="must be from 1 to the 12636 steps of the run, got -17364"):
        StaticModelPruningRule(smp_compat=True).check(goal)
    StaticModelPruningRule().check(goal)


@pytest.mark.parametrize(("score", "share"), [(9.0, "100.0000%"), (-9.0, "0.0000%")])
def test_a_threshold_that_keeps_all_or_nothing_is_stopped_after_its_ramp(score: float, share: str) -> None:
    scores = {key: torch.full(shape, score) for key, shape in SHAPES.items()}
    rule = StaticModelPruningRule(mask=Mask.THRESHOLD)
    rule.masks(scores, prunable_units(), GOAL, 6)
    with pytest.raises(ValueError, match=f"mask T diverged: at step 7 it keeps {share}"):
        rule.masks(scores, prunable_units(), GOAL, 7)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": 0.0}, "temperature must be positive"),
        ({"threshold": 0.0}, "threshold must be between 0 and 1"),
        ({"regularisation": float("nan")}, "regularisation must be at least 0, got nan"),
    ],
)
def test_options_that_make_no_sense_are_refused(options: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        StaticModelPruningRule(**options)  # type: ignore[arg-type]
