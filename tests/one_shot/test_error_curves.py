"""Error curves: lines between measured points, which serve every sparsity once they are measured."""

from __future__ import annotations

import copy
import json
import math

import pytest

from sparsebert import prune_
from sparsebert.one_shot import allocation
from sparsebert.one_shot.error_curves import ErrorCurve, ErrorCurves
from tests.one_shot.test_allocation import unequal
from tests.one_shot.test_prune_in_place import batches, bert, distance


def test_lines_join_the_points_and_the_outer_ones_go_on():
    curve = ErrorCurve.through((0.1, 0.8), (0.2, 0.4), (0.4, 0.3))
    points = {0.1: 0.8, 0.15: math.sqrt(0.32), 0.2: 0.4, 0.3: math.sqrt(0.12), 0.4: 0.3}
    for density, error in points.items():
        assert curve.at(density) == pytest.approx(error)
    assert curve.at(0.0) == pytest.approx(1.6)
    assert curve.at(0.6) == pytest.approx(0.225)
    assert curve.at(1) == 0


def test_an_error_never_grows_with_the_density():
    assert ErrorCurve.through((0.1, 0.3), (0.2, 0.4)).at(0.1) == pytest.approx(0.4)


@pytest.fixture
def measured(monkeypatch):
    """Count the measurements of curves and tables."""
    counts = []
    measure = allocation._matrices_alone
    monkeypatch.setattr(allocation, "_matrices_alone", lambda *args: counts.append(1) or measure(*args))
    return counts


@pytest.mark.parametrize(
    ("method", "granularity"), [("sparsegpt", "element"), ("sparsegpt", "4x2"), ("ziplm", "neuron")]
)
def test_curves_are_measured_once_for_all_sparsities(method, granularity, measured, tmp_path):
    data, file = batches(4), tmp_path / "curves.json"
    for sparsity in (0.5, 0.75):
        model = bert()
        ticket = prune_(
            model, method, sparsity=sparsity, granularity=granularity, data=data, curves=ErrorCurves(file)
        )
        assert ticket.sparsity == pytest.approx(sparsity, abs=0.03)
    assert len(measured) == 1


def test_the_ticket_tells_the_densities_of_the_curves():
    data, curves = batches(2), ErrorCurves()
    assert prune_(bert(), "wanda", sparsity=0.5, data=data, curves=curves).metadata["curves"]
    assert "curves" not in prune_(bert(), "wanda", sparsity=0.5, data=data).metadata


def test_curves_for_all_sparsities_end_nearer_to_the_dense_model_than_uniform_pruning():
    data, fresh, dense = batches(16), batches(8), unequal()
    curves = ErrorCurves()
    for sparsity in (0.5, 0.75):
        shared, uniform = copy.deepcopy(dense), copy.deepcopy(dense)
        prune_(shared, "sparsegpt", sparsity=sparsity, data=data, curves=curves)
        prune_(uniform, "sparsegpt", sparsity=sparsity, data=data, allocate="uniform")
        assert distance(dense, shared, fresh) < 0.9 * distance(dense, uniform, fresh)


@pytest.mark.parametrize("change", ["weights", "data", "granularity"])
def test_curves_of_something_else_are_refused(change, tmp_path):
    model, data, curves = bert(), batches(2), ErrorCurves(tmp_path / "curves.json")
    prune_(bert(), "wanda", sparsity=0.5, data=data, curves=curves)
    if change == "weights":
        model.encoder.layer[0].output.dense.weight.data[0, 0] += 1
    data = batches(3) if change == "data" else data
    granularity = "4x1" if change == "granularity" else "element"
    again = ErrorCurves(tmp_path / "curves.json")
    with pytest.raises(ValueError, match="of another model, other data or another granularity"):
        prune_(model, "wanda", sparsity=0.5, granularity=granularity, data=data, curves=again)


def test_a_file_that_holds_something_else_is_refused(tmp_path):
    file = tmp_path / "curves.json"
    file.write_text(json.dumps([1]))
    with pytest.raises(ValueError, match="must hold a JSON object"):
        ErrorCurves(file)


def test_methods_that_prune_all_layers_together_have_no_curves():
    with pytest.raises(ValueError, match="curves does not apply to method fisher-units"):
        prune_(bert(), "fisher-units", sparsity=0.5, data=batches(1), curves=ErrorCurves())
