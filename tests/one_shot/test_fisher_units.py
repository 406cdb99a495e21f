"""fisher-units as a whole: what it keeps, what its factors do, and what they are folded into."""

from __future__ import annotations

import copy
import re
from fractions import Fraction
from typing import Any

import pytest
import torch
from torch import Tensor

from sparsebert.bert import structure, weight_of
from sparsebert.compact import compact_
from sparsebert.cost.cpu_cost import CpuCostModel
from sparsebert.cost.work import Cost, WorkEstimate
from sparsebert.one_shot import FisherUnits, prune_
from sparsebert.one_shot.prune_units import PrunedUnits
from sparsebert.one_shot.unit_costs import Workload, unit_costs
from sparsebert.pruning.gates import gate_sites, gated
from sparsebert.pruning.prunable_structure import prunable_structure
from sparsebert.pruning.unit_groups import UnitGroup, unit_groups
from tests.pruning.gated_models import FAMILIES, HEAD, HEADS, LAYERS, NEURONS, WIDTH, batches, build, logits


def groups_of(model: Any, granularity: str = "head+neuron") -> tuple[UnitGroup, ...]:
    encoder, keys = prunable_structure(model, granularity)
    return unit_groups(granularity, None, {key: weight_of(model, key).shape for key in keys}, encoder)


def chosen(model: Any, method: FisherUnits, density: Fraction = Fraction(1, 2)) -> PrunedUnits:
    return method.prune_units(model, structure(model), groups_of(model), density, batches(4))


def gate_values(model: Any, pruned: PrunedUnits) -> Any:
    encoder = structure(model)
    sites = {**gate_sites(encoder, "head"), **gate_sites(encoder, "neuron")}
    return gated(model, sites, pruned.factors)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_pruned_model_is_the_gated_one_and_compacts_exactly(family: str) -> None:
    model = build(family).eval()
    dense = copy.deepcopy(model)
    ticket = prune_(model, FisherUnits(), data=batches(4), sparsity=0.5, granularity="head+neuron")
    pruned = chosen(dense, FisherUnits())
    with gate_values(dense, pruned):
        expected = logits(dense)
    torch.testing.assert_close(logits(model), expected, rtol=1e-4, atol=1e-5)
    for key, mask in ticket.masks.items():
        assert not weight_of(model, key)[~mask].any()
    assert not torch.allclose(logits(dense), expected, atol=1e-3)
    compacted = compact_(copy.deepcopy(model), ticket)
    torch.testing.assert_close(logits(compacted), expected, rtol=1e-4, atol=1e-5)
    weights, before = (sum(each.numel() for each in whole.parameters()) for whole in (compacted, model))
    assert weights < before


@pytest.mark.parametrize("granularity", ["head", "neuron", "head+neuron"])
def test_sparsity_counts_weights(granularity: str) -> None:
    model = build()
    ticket = prune_(model, "fisher-units", data=batches(2), sparsity=0.5, granularity=granularity)
    unit = 4 * HEAD * WIDTH if granularity == "head" else 2 * WIDTH
    total = sum(mask.numel() for mask in ticket.masks.values())
    assert 0.5 <= ticket.sparsity < 0.5 + unit / total
    assert ticket.metadata["cost_kept"] == pytest.approx(1 - ticket.sparsity)
    assert ticket.metadata["loss"] == "labels"
    assert ticket.metadata["granularity"] == granularity


def test_without_labels_the_outputs_of_the_dense_model_are_compared() -> None:
    model = build()
    unlabelled = [{name: each for name, each in batch.items() if name != "labels"} for batch in batches(2)]
    ticket = prune_(model, "fisher-units", data=unlabelled, sparsity=0.5, granularity="head+neuron")
    assert ticket.metadata["loss"] == "outputs"


@torch.no_grad()
def error_before_the_first_norm(model: Any, pruned: PrunedUnits) -> float:
    """The squared distance of what the first feed-forward network's LayerNorm reads, on all tokens."""
    seen: list[Tensor] = []
    norm = model.bert.encoder.layer[0].output.LayerNorm
    handle = norm.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    error = 0.0
    for batch in batches(4):
        model(**batch)
        with gate_values(model, pruned):
            model(**batch)
        wanted, got = (each[batch["attention_mask"].bool()] for each in seen[-2:])
        error += float((wanted - got).square().sum())
    handle.remove()
    return error


def test_the_first_layer_that_is_rescaled_is_nearer_to_the_dense_models() -> None:
    model = build(dtype=torch.float64).eval()
    rescaled = chosen(model, FisherUnits(lsmr_damping=1e-6))
    unscaled = PrunedUnits(rescaled.kept, {name: kept.double() for name, kept in rescaled.kept.items()})
    assert error_before_the_first_norm(model, rescaled) < 0.95 * error_before_the_first_norm(model, unscaled)


def test_the_heads_of_the_first_layer_stay_as_published() -> None:
    model = build(dtype=torch.float64)
    pruned = chosen(model, FisherUnits())
    first, second = (structure(model).heads[layer][0] for layer in (0, 1))
    assert torch.equal(pruned.factors[first], pruned.kept[first].double())
    assert not torch.equal(pruned.factors[second], pruned.kept[second].double())


def test_factors_beyond_the_limit_end_the_rescaling() -> None:
    model = build(dtype=torch.float64)
    pruned = chosen(model, FisherUnits(limit=1e-3))
    assert pruned.notes["rescaled_layers"] == 0
    assert all(torch.equal(pruned.factors[name], kept.double()) for name, kept in pruned.kept.items())


def test_a_teacher_halfway_gives_other_factors() -> None:
    model = build(dtype=torch.float64)
    dense, halfway = (chosen(model, FisherUnits(teacher=teacher)) for teacher in ("dense", "halfway"))
    assert all(torch.equal(halfway.kept[name], kept) for name, kept in dense.kept.items())
    name = structure(model).neurons[1][0]
    assert not torch.allclose(dense.factors[name], halfway.factors[name])


class TestCosts:
    @pytest.fixture(autouse=True)
    def _costs_of_a_machine(self, monkeypatch: pytest.MonkeyPatch) -> None:
        model = CpuCostModel({"dense": Cost(1e-9, 2e-12, 3e-11)}, 28)
        monkeypatch.setattr("sparsebert.one_shot.unit_costs.cost_model", lambda dtype, tokens: model)

    def costs(self, cost: str) -> tuple[dict[str, float], float]:
        costs = unit_costs(groups_of(build()), cost, Workload(28, 6.0), torch.float32)
        encoder = structure(build())
        head, neuron = (costs.of_unit[keys[0][0]] for keys in (encoder.heads, encoder.neurons))
        return {"head": head, "neuron": neuron}, costs.fixed

    def test_weights(self) -> None:
        assert self.costs("weights") == ({"head": 4 * WIDTH * HEAD, "neuron": 2 * WIDTH}, 0)

    def test_flops_are_the_published_macs(self) -> None:
        length = 6
        per_head = 3 * length * WIDTH * HEAD + 2 * length * length * HEAD + length * HEAD * WIDTH
        assert self.costs("flops") == ({"head": per_head, "neuron": 2 * length * WIDTH}, 0)

    def test_milliseconds_add_up_to_the_prediction_of_dense_layers(self) -> None:
        of_unit, fixed = self.costs("milliseconds")
        model = CpuCostModel({"dense": Cost(1e-9, 2e-12, 3e-11)}, 28)
        shapes = [(WIDTH, WIDTH)] * 4 + [(NEURONS, WIDTH), (WIDTH, NEURONS)]
        linears = sum(model.seconds(WorkEstimate("dense", m * n, m + n, 0)) for m, n in shapes)
        products = 28 * 2e-12 * 2 * 6 * WIDTH
        total = fixed + LAYERS * (HEADS * of_unit["head"] + NEURONS * of_unit["neuron"])
        assert total == pytest.approx(1e3 * LAYERS * (linears + products), rel=1e-9)

    def test_milliseconds_are_a_budget(self) -> None:
        model = build()
        method = FisherUnits(cost="milliseconds", rescales=False)
        ticket = prune_(model, method, data=batches(2), sparsity=0.2, granularity="head+neuron")
        assert 0.7 < ticket.metadata["cost_kept"] <= 0.8

    def test_what_no_unit_can_save_is_said(self) -> None:
        method = FisherUnits(cost="milliseconds", rescales=False)
        with pytest.raises(ValueError, match=r"^layers without heads and neurons take [0-9]+% of the cost"):
            prune_(build(), method, data=batches(1), sparsity=0.99, granularity="head+neuron")

    def test_workload_counts_padding_in_a_batch_but_not_in_a_text(self) -> None:
        assert Workload.of(batches(3, size=4)) == Workload(28, 6.0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"loss": "label"}, "unknown loss 'label'"),
        ({"cost": "flop"}, "unknown cost of a unit 'flop'"),
        ({"teacher": "none"}, "unknown teacher 'none'"),
        ({"probes": 0}, "probes must be a positive int, got 0"),
        ({"lsmr_damping": 0.0}, "lsmr_damping must be positive, got 0.0"),
        ({"limit": -1.0}, "limit must be positive, got -1.0"),
    ],
)
def test_bad_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
        FisherUnits(**options)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"granularity": "element"},
            "method fisher-units prunes granularity head, neuron or",
        ),
        (
            {"granularity": "head+mlp"},
            "method fisher-units prunes granularity head, neuron or",
        ),
        ({"sparsity": 1.0}, "sparsity must be a number in [0, 1), got 1.0"),
        ({"sparsity": 0.9999}, "sparsity 0.9999 would keep no head and no neuron"),
        ({"densities": {"a": 0.5}}, "densities does not apply to method fisher-units"),
        ({"reproduce": "layer"}, "reproduce does not apply to method fisher-units"),
        ({"data": []}, "data holds no batch: calibration needs at least one"),
    ],
)
def test_bad_arguments(arguments: dict[str, Any], message: str) -> None:
    model = build()
    before = logits(model)
    given = {"data": batches(1), "sparsity": 0.5, "granularity": "head+neuron"} | arguments
    with pytest.raises(ValueError, match=f"^{re.escape(message)}") as error:
        prune_(model, "fisher-units", **given)
    assert "\n" not in str(error.value)
    assert torch.equal(logits(model), before)
