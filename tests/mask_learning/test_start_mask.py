"""Learned masks that start from a ticket: the first mask is the ticket's, the last is as sparse as asked."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import pytest
import torch

from sparsebert.bert import resolve, structure
from sparsebert.mask_learning.learner import Learner
from sparsebert.mask_learning.movement import GradualMagnitudeRule, MovementRule, SoftMovementRule
from sparsebert.mask_learning.rule import Goal, PrunableUnits, Rule
from sparsebert.mask_learning.smp import Mask, StaticModelPruningRule
from sparsebert.mask_learning.start_mask import kept_units, require_start_mask, started
from sparsebert.pruning import prune
from sparsebert.pruning.unit_groups import unit_groups
from sparsebert.tickets.ticket import Ticket

transformers = pytest.importorskip("transformers")
GOAL = Goal(steps=12, warmup=1, density=Fraction(1, 4))
RULES: dict[str, tuple[Rule, str]] = {
    "gradual": (GradualMagnitudeRule(), "matrix"),
    "gradual, global": (GradualMagnitudeRule(), "global"),
    "movement": (MovementRule(), "matrix"),
    "movement, global": (MovementRule(), "global"),
    "movement, type": (MovementRule(), "type"),
    "smp S": (StaticModelPruningRule(mask=Mask.SHARED), "type"),
    "smp L": (StaticModelPruningRule(mask=Mask.LOCAL), "matrix"),
    "smp G": (StaticModelPruningRule(mask=Mask.GLOBAL), "global"),
}
BY_THRESHOLD: dict[str, Rule] = {
    "soft-movement": SoftMovementRule(),
    "soft-movement, half": SoftMovementRule(threshold=0.5),  # sigmoid of the usual first score, 0
    "smp T": StaticModelPruningRule(mask=Mask.THRESHOLD),
}
UNITS: dict[str, dict[str, Any]] = {
    "element": {},
    "block": {"granularity": "block", "block_size": (4, 8)},
    "panel": {"granularity": "panel", "block_size": (8, 2), "round_to": 4},
    "row": {"granularity": "row"},
    "neuron": {"granularity": "neuron"},
    "head": {"granularity": "head"},
}


def classifier() -> Any:
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=30, hidden_size=16, num_attention_heads=4, intermediate_size=24, num_hidden_layers=2
    )
    return transformers.BertForSequenceClassification(config).eval()


def uneven(model: Any, **units: Any) -> Ticket:
    """A ticket with another density in every matrix, as error-based allocation gives."""
    for number, key in enumerate(structure(model).linears):
        with torch.no_grad():
            resolve(model, key).weight.mul_(1 + 0.2 * number)
    ticket = prune(model, sparsity=0.5, **units)
    assert len({round(share, 2) for share in ticket.layer_sparsity.values()}) > 1 or units
    return ticket


def learner(rule: Rule, scope: str, start: Ticket, model: Any, **units: Any) -> Learner:
    return Learner(
        model,
        rule,
        GOAL,
        prune(model, sparsity=0, **units),
        method="a-method",
        scope=scope,
        start=start,
        **units,
    )


@pytest.mark.parametrize("rule", RULES)
def test_the_first_mask_is_the_tickets_and_the_last_has_the_density_asked_for(rule: str) -> None:
    model = classifier()
    start = uneven(model)
    learning = learner(*RULES[rule], start, model)
    learning.derive_(0)
    assert Ticket(learning.masks()) == start
    learning.derive_(GOAL.steps)
    assert Ticket(learning.masks()).density == pytest.approx(0.25, abs=1e-3)


@pytest.mark.parametrize("units", UNITS)
def test_units_of_several_weights_start_alike(units: str) -> None:
    model = classifier()
    start = uneven(model, **UNITS[units])
    learning = learner(MovementRule(), "global", start, model, **UNITS[units])
    learning.derive_(0)
    assert Ticket(learning.masks()) == start


@pytest.mark.parametrize("rule", BY_THRESHOLD)
def test_a_threshold_is_final_from_the_first_step(rule: str) -> None:
    model = classifier()
    start = uneven(model)
    learning = learner(BY_THRESHOLD[rule], "matrix", start, model)
    for step in (0, GOAL.steps):  # the scores do not change here
        learning.derive_(step)
        assert Ticket(learning.masks()) == start


def test_densities_go_along_the_curve_from_the_tickets_to_the_target() -> None:
    """A matrix that the ticket keeps less of than the target grows; the others shrink."""
    model = classifier()
    start = uneven(model)
    learning = learner(MovementRule(initial_warmup=2, final_warmup=2), "matrix", start, model)
    ramp = [1 - (1 - i / 8) ** 3 for i in range(9)]
    for step in range(GOAL.steps + 1):
        learning.derive_(step)
        progress = ramp[min(max(step - 2, 0), 8)]
        for key, mask in learning.masks().items():
            first = 1 - start.layer_sparsity[key]
            expected = first + (0.25 - first) * progress
            assert float(mask.float().mean()) == pytest.approx(expected, abs=1 / mask.numel())


def test_a_unit_that_the_ticket_prunes_comes_back_if_its_score_rises_far_enough() -> None:
    model = classifier()
    start = uneven(model)
    learning = learner(MovementRule(scores_learning_rate=0.01), "matrix", start, model)
    key = structure(model).linears[0]
    scores = learning.scores()[key]
    pruned = (~start.masks[key]).nonzero()[0].tolist()
    distance = 0.01 * GOAL.steps**0.5  # what steps of Adam cover at random
    with torch.no_grad():
        scores[tuple(pruned)] += 0.99 * distance
    learning.derive_(0)
    assert not learning.masks()[key][tuple(pruned)]
    with torch.no_grad():
        scores[tuple(pruned)] += 0.02 * distance
    learning.derive_(0)
    assert learning.masks()[key][tuple(pruned)]


def test_magnitudes_of_pruned_weights_rank_below_all_kept_ones() -> None:
    model = classifier()
    start = uneven(model)
    key = structure(model).linears[-1]  # the ticket keeps more of it than the target
    with torch.no_grad():
        resolve(model, key).weight[~start.masks[key]] = 1000.0
    learning = learner(GradualMagnitudeRule(), "matrix", start, model)
    learning.derive_(GOAL.steps)
    assert not (learning.masks()[key] & ~start.masks[key]).any()


def test_the_learned_ticket_continues_the_history_of_the_start() -> None:
    model = classifier()
    start = uneven(model)
    history = learner(MovementRule(), "matrix", start, model).close_().metadata["history"]
    assert [step["operation"] for step in history] == ["prune", "learn"]


def test_a_ticket_of_other_units_is_refused() -> None:
    model = classifier()
    with pytest.raises(ValueError, match=r"prunes parts of units of encoder\.layer\.0"):
        learner(MovementRule(), "global", uneven(model), model, granularity="row")


def test_a_floor_that_keeps_what_the_ticket_prunes_is_refused() -> None:
    """The check before a run: rules that would begin with another mask."""
    model = classifier()
    keys = structure(model).linears
    masks = {key: torch.ones_like(resolve(model, key).weight, dtype=torch.bool) for key in keys}
    masks[keys[3]][:] = False
    groups = unit_groups("element", None, {key: mask.shape for key, mask in masks.items()}, None)
    units = PrunableUnits(groups, structure(model).types, "matrix")
    kept = kept_units(Ticket(masks), groups)
    goal = started(GOAL, kept, groups)
    require_start_mask(MovementRule(), units, goal, kept)
    with pytest.raises(ValueError, match=f"mask of {keys[3]}: it would keep 2 units, the ticket keeps 0"):
        require_start_mask(SoftMovementRule(), units, goal, kept)


def test_the_released_code_has_no_start_ticket() -> None:
    model = classifier()
    with pytest.raises(ValueError, match="omit smp_compat or the start ticket"):
        learner(StaticModelPruningRule(smp_compat=True, ramp_steps=5), "type", uneven(model), model)


def test_masks_are_chosen_once_every_matrix_is_near_the_target() -> None:
    rule = StaticModelPruningRule(mask=Mask.LOCAL, ramp_steps=8)
    goal = Goal(12, 0, Fraction(1, 4), start={"a": Fraction(1, 4), "b": Fraction(1, 20)})
    near = [rule.is_near(goal, step) for step in range(9)]
    # 0.2 away from the target, times (1 - t / 8)^3, is below 0.01 from t = 6 on.
    assert near == [False] * 6 + [True] * 3
