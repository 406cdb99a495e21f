"""A budget of milliseconds: densities and granularities by the error and time of each matrix."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sparsebert.bert import resolve
from sparsebert.one_shot.budgets import STEPS
from sparsebert.one_shot.layer_problem import Target
from sparsebert.one_shot.time_budget import (
    DENSITIES,
    MatrixOption,
    TimeTable,
    at_density,
    cheapest,
    choose_within,
    matrix_options,
    random_mask,
)
from sparsebert.pruning.granularity import spelled_out
from sparsebert.pruning.unit_groups import unit_groups
from sparsebert.tickets.provenance import weight_hash
from tests.one_shot.test_allocation import targets_of
from tests.one_shot.test_prune_in_place import batches, bert

WAYS = ("layers", "fp32")
milliseconds = st.fixed_dictionaries({way: st.integers(0, 40).map(float) for way in WAYS})
options = st.lists(
    st.builds(MatrixOption, st.just("element"), st.just(0.5), st.floats(0, 10), milliseconds),
    min_size=1,
    max_size=4,
)


def by_kept(mask, activation="none"):
    """A machine on which sparse weights take twice as long as dense ones, and vectors as long."""
    rows = mask.unflatten(0, (-1, 4)) if mask.shape[0] % 4 == 0 else mask[:, None]
    vectors = bool((rows.all(1) == rows.any(1)).all())
    kept = float(mask.sum())
    return {"layers": min(kept * (1.0 if vectors else 2.0), float(mask.numel())) / 1e3}


def table_of(model, granularities=("element", "4x1"), cost_of=by_kept):
    shapes = {key: resolve(model, key).weight.shape for key in targets_of(model)}
    cut = {name: unit_groups(*spelled_out(name), shapes, None) for name in granularities}
    return TimeTable(
        {name: {g.name: Target(g, at_density_half) for g in groups} for name, groups in cut.items()}, cost_of
    )


at_density_half = next(iter(targets_of(bert()).values())).density


@given(st.lists(options, min_size=1, max_size=4), st.integers(1, 100), st.integers(1, 100))
def test_no_choice_in_any_way_has_less_error_within_its_limit(matrices, first, second):
    given_options = {str(index): each for index, each in enumerate(matrices)}
    limits = {"layers": float(first), "fp32": float(second)}
    rounding = len(matrices) / STEPS
    exactly, surely = (
        [
            sum(option.error for option in picked)
            for way, limit in limits.items()
            for picked in itertools.product(*matrices)
            if sum(option.milliseconds[way] for option in picked) <= limit * share
        ]
        for share in (1.0, 1 - rounding)
    )
    allocation = choose_within(given_options, limits)
    if not exactly:
        assert allocation is None
        return
    assert allocation.milliseconds <= limits[allocation.way] * (1 + rounding)
    assert allocation.error == pytest.approx(sum(option.error for option in allocation.options.values()))
    assert not surely or allocation.error <= min(surely) + 1e-9


def test_the_fastest_options_keep_the_most_weights_that_cost_no_more():
    each = [MatrixOption("element", share, 1 - share, {"layers": 2.0}) for share in (0.1, 0.5)]
    chosen = cheapest({"a": [MatrixOption("element", 1.0, 0.0, {"layers": 3.0}), *each]}, "layers")
    assert chosen.options["a"].density == 0.5


def test_matrices_of_one_shape_are_timed_once():
    timed = []

    def cost_of(mask, activation):
        timed.append(tuple(mask.shape))
        return by_kept(mask)

    table = table_of(bert(), cost_of=cost_of)
    table.uniform("element", DENSITIES[-3])
    table.uniform("4x1", 1.0)
    table.uniform("element", 1.0)
    assert len(timed) == 2 * len(set(timed))


def test_matrices_of_one_shape_with_other_activations_are_timed_apart():
    table = table_of(
        bert(), cost_of=lambda mask, activation: {"layers": 2.0 if activation == "gelu" else 1.0}
    )
    query, key = (f"encoder.layer.0.attention.self.{name}" for name in ("query", "key"))
    table.activations = {query: "gelu"}
    assert table.milliseconds("element", query, 0.5) == {"layers": 2.0}
    assert table.milliseconds("element", key, 0.5) == {"layers": 1.0}


def test_the_uniform_density_is_the_highest_that_a_way_affords():
    table = table_of(bert())
    dense = table.uniform("element", 1.0)["layers"]
    density = table.uniform_density("element", {"layers": 0.5 * dense})
    assert 0.2 < density <= 0.25
    assert table.uniform_density("element", {"layers": dense}) == 1.0


def test_options_are_dense_without_error_and_every_granularity_at_every_density():
    model = bert()
    before = weight_hash(model)
    found = matrix_options(model, table_of(model), batches(4), 0.3)
    assert weight_hash(model) == before
    assert list(found) == list(targets_of(model))
    for each in found.values():
        dense, *pruned = each
        assert (dense.density, dense.error) == (1.0, 0.0)
        assert [option.granularity for option in pruned] == ["element"] * len(DENSITIES) + ["4x1"] * len(
            DENSITIES
        )
    near = min(DENSITIES, key=lambda density: abs(density - 0.25))
    total: dict[str, list[float]] = {}
    for option in (option for each in found.values() for option in each if option.density == near):
        error, milliseconds = total.setdefault(option.granularity, [0.0, 0.0])
        total[option.granularity] = [error + option.error, milliseconds + option.milliseconds["layers"]]
    assert 0 < total["element"][0] < total["4x1"][0]
    assert total["element"][1] > 1.9 * total["4x1"][1]


def test_a_matrix_stays_dense_rather_than_slower_than_dense():
    model = bert()
    table = table_of(model, ("element",))
    found = matrix_options(model, table, batches(4), 0.3)
    dense = table.uniform("element", 1.0)["layers"]
    for share in (0.5, 0.7, 0.9):
        chosen = choose_within(found, {"layers": share * dense})
        assert not any(0.5 < option.density < 1 for option in chosen.options.values())
        assert any(option.density == 1 for option in chosen.options.values())


def test_granularities_mix_where_a_matrix_loses_little_by_vectors():
    model = bert()
    found = matrix_options(model, table_of(model), batches(4), 0.3)
    key = next(iter(found))
    lossless = [
        MatrixOption(
            o.granularity, o.density, o.error if o.granularity == "element" else 1e-9, o.milliseconds
        )
        for o in found[key]
    ]
    chosen = choose_within({**found, key: lossless}, {"layers": 5.0})
    assert chosen.options[key].granularity == "4x1"


@pytest.mark.parametrize("granularity", ["element", "4x1", "panel(8,2)"])
def test_random_masks_are_of_the_granularity_and_density(granularity):
    table = table_of(bert(hidden_size=64, intermediate_size=128), (granularity,))
    target = at_density(table.targets[granularity]["encoder.layer.0.output.dense"], 0.5)
    mask = random_mask(target)
    assert float(mask.float().mean()) == pytest.approx(0.5, abs=0.13)
    assert torch.equal(
        target.group.expand(target.group.whole({target.group.name: mask}))[target.group.name], mask
    )
