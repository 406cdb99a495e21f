"""Programmes: what a model keeps within a predicted time, by kind of method."""

from __future__ import annotations

import pytest
import torch

from sparsebert.one_shot import FisherUnits, SparseGPT, ZipLM
from sparsebert.one_shot.progress_file import ProgressFile
from sparsebert.workflows import method_programme
from sparsebert.workflows.method_programme import programme_for
from sparsebert.workflows.speed_programmes import (
    Limit,
    MatrixProgramme,
    UniformProgramme,
    UnitProgramme,
)
from tests.one_shot.test_time_budget import by_kept
from tests.pruning.gated_models import HEADS, NEURONS, batches, build

REST = 1.0


def unlabelled(count=4):
    return [{name: each for name, each in batch.items() if name != "labels"} for batch in batches(count)]


class Costs:
    """A machine on which sparse weights take twice as long as dense ones; see ``by_kept``."""

    dtype, tokens, device = torch.float32, 28, None

    def __init__(self, model, keys):
        self.rest = {"layers": REST}
        self.of_mask, self.activations = by_kept, {}
        weights = sum(model.get_submodule(key).weight.numel() for key in keys)
        self.dense = REST + weights / 1e3


@pytest.fixture
def model(monkeypatch):
    monkeypatch.setattr(method_programme, "mask_costs", lambda base, keys, *_: Costs(base, keys))
    return build().eval()


def programme(model, method=None, **options):
    return programme_for(model, method or SparseGPT(), unlabelled(), unlabelled(2), **options)


def at(milliseconds, slowdown=1.0):
    return lambda way: Limit(milliseconds, slowdown)


def test_densities_keep_the_limit_and_are_those_of_the_random_ticket(model):
    found = programme(model)
    assert isinstance(found, MatrixProgramme)
    limit = REST + 0.4 * (found.dense - REST)
    choice = found.within(at(limit))
    assert choice.reached
    assert 0.95 * limit < choice.milliseconds <= limit
    kept = {key: float(mask.float().mean()) for key, mask in choice.ticket.masks.items()}
    assert kept == pytest.approx(dict(choice.densities), abs=0.01)
    assert choice.granularities == {}
    assert 0 < choice.error < found.within(at(0.7 * limit)).error


def test_each_matrix_chooses_its_granularity(model):
    found = programme(model, granularity="element,4x1")
    choice = found.within(at(0.3 * found.dense))
    assert set(choice.granularities) == set(choice.densities) == set(choice.ticket.masks)
    assert set(choice.granularities.values()) <= {"element", "4x1"}
    assert str(choice).endswith(")")


def test_where_pruned_matrices_are_slower_than_predicted_more_stay_dense(model):
    found = programme(model)
    limit = REST + 0.8 * (found.dense - REST)
    as_predicted, slower = (found.within(at(limit, slowdown)) for slowdown in (1.0, 1.3))
    dense = [sum(density == 1 for density in each.densities.values()) for each in (as_predicted, slower)]
    assert dense[1] >= dense[0]
    assert slower.pruned * 1.3 + slower.rest <= limit * 1.01
    assert slower.error > as_predicted.error


@pytest.mark.parametrize(
    ("method", "granularity"), [(SparseGPT(), "element"), (ZipLM(), "head+neuron")], ids=["element", "units"]
)
def test_a_run_that_was_killed_measures_nothing_again(model, tmp_path, monkeypatch, method, granularity):
    file, reports = tmp_path / "measured", []
    limit = at(0.9 * programme(model).dense)
    options = {"granularity": granularity, "progress": reports.append}
    before = programme(model, method, saved=ProgressFile(file, {}), **options).within(limit)
    assert reports[-1].done == pytest.approx(1)

    def measured(*arguments):
        raise AssertionError("measured again")

    monkeypatch.setattr("sparsebert.one_shot.allocation._matrices_alone", measured)
    after = programme(model, method, saved=ProgressFile(file, {}), **options).within(limit)
    assert after.densities == before.densities


def test_the_fastest_choice_stands_for_a_limit_out_of_reach(model):
    choice = programme(model).within(at(0.0))
    assert not choice.reached
    assert max(choice.densities.values()) < 0.02


def test_one_sparsity_for_all_where_that_is_asked_for(model):
    found = programme(model, allocate="uniform")
    assert isinstance(found, UniformProgramme)
    limit = REST + 0.5 * (found.dense - REST)
    choice = found.within(at(limit))
    assert choice.ticket.sparsity == pytest.approx(0.75, abs=0.02)
    assert choice.densities == {}
    assert found.within(at(found.dense)).ticket.sparsity == 0


def test_heads_and_neurons_are_chosen_by_their_dense_milliseconds(model):
    found = programme(model, ZipLM(), granularity="head+neuron")
    assert isinstance(found, UnitProgramme)
    choices = [found.within(at(share * found.dense)) for share in (1.0, 0.99999)]
    assert choices[0].ticket.sparsity == 0
    assert choices[1].ticket.sparsity > 0
    counts = {
        key: density * (HEADS if "attention" in key else NEURONS)
        for key, density in choices[1].densities.items()
    }
    assert all(count == pytest.approx(round(count)) for count in counts.values())
    assert choices[1].ticket.masks.keys() > counts.keys()


def test_on_a_gpu_heads_and_neurons_cost_what_its_roofline_says(monkeypatch):
    model = build().eval()
    found = programme(model, ZipLM(), granularity="head+neuron", device="h100")
    choice = found.within(at(found.dense))
    assert choice.ticket.sparsity == 0
    assert choice.milliseconds == pytest.approx(found.dense)
    assert not found.within(at(0.0)).reached


def test_units_of_all_layers_together_are_taken_to_be_proportional(model):
    found = programme(model, FisherUnits(), granularity="head+neuron")
    assert isinstance(found, UniformProgramme)
    choice = found.within(at(REST + 0.5 * (found.dense - REST)))
    assert choice.ticket.sparsity == pytest.approx(0.5, abs=0.1)


@pytest.mark.parametrize(
    ("method", "options", "message"),
    [
        (SparseGPT(), {"granularity": "element,elemnt"}, r"unknown granularity 'elemnt'"),
        (
            SparseGPT(),
            {"granularity": "element,head+neuron"},
            r"granularity 'head\+neuron' has units across matrices and cannot stand beside others in a list",
        ),
        (ZipLM(), {"granularity": "head,4x1"}, "granularity 'head' has units across matrices"),
        (SparseGPT(), {"granularity": "element,2:4"}, "granularity '2:4' fixes the sparsity: omit the speed"),
        (SparseGPT(), {"granularity": "element,4x1", "allocate": "uniform"}, "allocate='uniform' takes one"),
        (
            SparseGPT(),
            {"granularity": "element,panel(8,2)", "round_to": 8},
            r"round_to takes one granularity, got 'element,panel\(8,2\)'",
        ),
        (FisherUnits(), {"granularity": "element,4x1"}, "method fisher-units takes one granularity"),
    ],
    ids=str,
)
def test_what_does_not_fit_is_refused_in_one_line(model, method, options, message):
    with pytest.raises(ValueError, match=message) as error:
        programme(model, method, **options)
    assert "\n" not in str(error.value)
