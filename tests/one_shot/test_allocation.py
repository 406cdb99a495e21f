"""Allocation: matrices that matter more to the model's outputs keep more weights."""

from __future__ import annotations

import copy
import math
from fractions import Fraction

import pytest
import torch

from sparsebert import prune_
from sparsebert.bert import resolve, structure
from sparsebert.one_shot.allocation import ErrorCurve, allocated, error_points
from sparsebert.one_shot.layer_problem import Target
from sparsebert.pruning.unit_groups import unit_groups
from sparsebert.tickets.provenance import weight_hash
from tests.one_shot.test_prune_in_place import batches, bert, distance

transformers = pytest.importorskip("transformers")


def targets_of(model, density=Fraction(1, 4)):
    shapes = {key: resolve(model, key).weight.shape for key in structure(model).linears}
    return {group.name: Target(group, density) for group in unit_groups("element", None, shapes, None)}


def unequal():
    """A BERT whose second layer adds almost nothing to the residual stream."""
    model = bert()
    for name in ("attention.output.dense", "output.dense"):
        model.encoder.layer[1].get_submodule(name).weight.data *= 0.01
    return model


def test_the_mean_density_stays():
    model = unequal()
    chosen = allocated(model, targets_of(model), batches(4))
    weights = {key: target.group.weights for key, target in chosen.items()}
    kept = sum(float(target.density) * weights[key] for key, target in chosen.items())
    assert kept / sum(weights.values()) == pytest.approx(0.25, rel=1e-3)


def test_a_layer_that_adds_nothing_keeps_less():
    model = unequal()
    chosen = allocated(model, targets_of(model), batches(4))
    first, second = (chosen[f"encoder.layer.{layer}.output.dense"].density for layer in (0, 1))
    assert second < 0.5 * first


def test_measuring_leaves_the_model_as_it_was():
    model = unequal().train()
    before, state = weight_hash(model), copy.deepcopy(model.state_dict())
    allocated(model, targets_of(model), batches(2))
    assert weight_hash(model) == before
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert model.training


def test_a_curve_tells_what_pruning_one_matrix_alone_costs():
    model, data = bert(), batches(4)
    key = "encoder.layer.1.intermediate.dense"
    targets = targets_of(model, Fraction(1, 5))
    curve = ErrorCurve.through(*error_points(model, targets, data, (0.1, 0.2))[key])
    pruned = copy.deepcopy(model)
    prune_(pruned, "sparsegpt", sparsity=0.8, data=data, filter=lambda name, linear: name == key)
    assert curve.at(0.2) == pytest.approx(distance(model, pruned, data), rel=0.05)
    assert curve.at(0.1) > curve.at(0.2) > curve.at(0.5) > curve.at(1) == 0


def test_the_curve_passes_through_its_points():
    curve = ErrorCurve.through((0.1, 0.4), (0.3, 0.1))
    assert curve.at(0.1) == pytest.approx(0.4)
    assert curve.at(0.3) == pytest.approx(0.1)
    assert curve.at(0.2) == pytest.approx(math.sqrt(0.04))


def test_prune_by_error_ends_nearer_to_the_dense_model_than_uniform_pruning():
    data, fresh, dense = batches(16), batches(8), unequal()
    by_error, uniform = copy.deepcopy(dense), copy.deepcopy(dense)
    ticket = prune_(by_error, sparsity=0.75, data=data, allocate="error")
    prune_(uniform, sparsity=0.75, data=data, allocate="uniform")
    assert ticket.sparsity == pytest.approx(0.75, abs=1e-3)
    assert len(set(ticket.layer_sparsity.values())) > 3
    assert ticket.metadata["allocate"] == "error"
    assert distance(dense, by_error, fresh) < 0.9 * distance(dense, uniform, fresh)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"granularity": "2:4", "sparsity": None}, "conflicts with granularity '2:4'"),
        ({"densities": {"encoder.layer.0.output.dense": 0.5}}, "conflicts with densities"),
        ({"allocate": "errors"}, "value of allocate.*'error'"),
    ],
    ids=str,
)
def test_what_does_not_fit_is_refused(options, message):
    arguments = {"sparsity": 0.5, "allocate": "error", "data": batches(1)} | options
    with pytest.raises(ValueError, match=message):
        prune_(bert(), **arguments)
