"""What layers lose at many numbers of heads and neurons, and the numbers that lose least for a cost."""

from __future__ import annotations

import copy
import itertools
from fractions import Fraction
from typing import Any

import pytest
import torch

from sparsebert import prune_
from sparsebert.bert import structure, weight_of
from sparsebert.one_shot import Target, ZipLM
from sparsebert.one_shot.unit_columns import reader_of
from sparsebert.one_shot.unit_costs import Workload, unit_costs
from sparsebert.one_shot.unit_table import Row, allocated_units, unit_table
from sparsebert.pruning.unit_groups import UnitGroup, unit_groups
from sparsebert.tickets.provenance import weight_hash
from tests.pruning.gated_models import HEAD, HEADS, NEURONS, WIDTH, batches, build

METHOD = ZipLM(steps=NEURONS)


def groups_of(model: Any) -> tuple[UnitGroup, ...]:
    encoder = structure(model)
    shapes = {key: weight_of(model, key).shape for key in encoder.linears}
    return unit_groups("head+neuron", None, shapes, encoder)


def unlabelled(count: int) -> list[dict[str, torch.Tensor]]:
    return [{name: each for name, each in batch.items() if name != "labels"} for batch in batches(count)]


def table_of(model: Any, cost: str = "weights") -> dict[str, list[Row]]:
    groups = groups_of(model)
    costs = unit_costs(groups, cost, Workload.of(batches(4)), torch.float32)
    with torch.no_grad():
        return unit_table(model, groups, unlabelled(4), METHOD, costs)


def uneven() -> Any:
    """A BERT whose second layer adds almost nothing to the residual stream."""
    model = build().eval()
    for name in ("attention.output.dense", "output.dense"):
        model.bert.encoder.layer[1].get_submodule(name).weight.data *= 0.01
    return model


def test_rows_go_from_all_units_without_error_to_none() -> None:
    model = build().eval()
    table = table_of(model)
    encoder = structure(model)
    assert set(table) == {keys[-1] for keys in (*encoder.heads, *encoder.neurons)}
    for key, rows in table.items():
        units, price = (HEADS, 4 * HEAD * WIDTH) if "attention" in key else (NEURONS, 2 * WIDTH)
        assert (rows[0].kept, rows[0].error, rows[-1].kept) == (units, 0, 0)
        assert all(row.cost == row.kept * price for row in rows)
        assert all(a.kept > b.kept and a.error <= b.error for a, b in itertools.pairwise(rows))
    assert [row.kept for row in table[encoder.heads[0][-1]]] == [4, 3, 2, 1, 0]


def test_the_scale_is_that_of_the_models_last_hidden_states() -> None:
    model = build().eval()
    rows = {row.kept: row for row in table_of(model)["encoder.layer.1.output.dense"]}
    pruned, alone = copy.deepcopy(model), copy.deepcopy(model)
    densities = {keys[-1]: 1.0 for keys in structure(model).neurons} | {"encoder.layer.1.output.dense": 0.5}
    prune_(pruned, METHOD, data=unlabelled(4), sparsity=0, densities=densities, granularity="neuron")
    # Nothing before this matrix is pruned; what comes after it has made up for it.
    matrices = (each.bert.encoder.layer[1].output.dense for each in (alone, pruned))
    next(matrices).load_state_dict(next(matrices).state_dict())
    change = energy = 0.0
    for batch in unlabelled(4):
        mask = batch["attention_mask"].bool()
        with torch.no_grad():
            dense, other = (each.bert(**batch).last_hidden_state[mask] for each in (model, alone))
        change += float((dense - other).square().sum())
        energy += float(dense.square().sum())
    assert rows[NEURONS // 2].error == pytest.approx(change / energy, rel=1e-3)


def test_a_layer_that_adds_nothing_keeps_less_for_the_same_sparsity() -> None:
    model = uneven()
    before = weight_hash(model)
    groups = groups_of(model)
    targets = {each.name: Target(each, Fraction(1, 2)) for each in map(reader_of, groups)}
    chosen = allocated_units(model, groups, targets, unlabelled(6), METHOD)
    assert weight_hash(model) == before
    for kind, count in (("heads", HEADS), ("neurons", NEURONS)):
        first, second, _ = (chosen[keys[-1]].density * count for keys in getattr(structure(model), kind))
        assert second < 0.5 * first
        assert first.denominator == second.denominator == 1
    kept = sum(chosen[reader_of(group).name].density * group.weights for group in groups)
    assert 0.47 < kept / sum(group.weights for group in groups) <= 0.5


def test_prune_allocates_unless_told_otherwise() -> None:
    model = uneven()
    ticket = prune_(model, METHOD, data=batches(6), sparsity=0.5, granularity="head+neuron")
    assert ticket.metadata["allocate"] == "error"
    assert 0.5 <= ticket.sparsity < 0.53
    first, second = (
        float(ticket.masks[f"encoder.layer.{layer}.output.dense"].float().mean()) for layer in (0, 1)
    )
    assert second < 0.5 * first


def test_milliseconds_are_a_budget_too(monkeypatch: pytest.MonkeyPatch) -> None:
    from sparsebert.cost.cpu_cost import CpuCostModel
    from sparsebert.cost.work import Cost

    costs = CpuCostModel({"dense": Cost(1e-9, 2e-12, 3e-11)}, 28)
    monkeypatch.setattr("sparsebert.one_shot.unit_costs.cost_model", lambda dtype, tokens: costs)
    model = build().eval()
    groups = groups_of(model)
    targets = {each.name: Target(each, Fraction(7, 10)) for each in map(reader_of, groups)}
    chosen = allocated_units(model, groups, targets, unlabelled(4), METHOD, cost="milliseconds")
    price = unit_costs(groups, "milliseconds", Workload.of(batches(4)), torch.float32)
    whole = {group.name: group.grid[0] for group in groups}
    kept = {group.name: chosen[reader_of(group).name].density * group.grid[0] for group in groups}
    assert 0.66 < price.total(kept) / price.total(whole) <= 0.7 + 1e-3


def test_a_layer_may_lose_all_its_units() -> None:
    model = build().eval()
    heads = {keys[-1]: 0.5 for keys in structure(model).heads}
    emptied = next(iter(heads))
    ticket = prune_(
        model, METHOD, data=batches(2), sparsity=0.5, granularity="head", densities=heads | {emptied: 0}
    )
    assert not ticket.masks[emptied].any()


def test_allocation_of_units_needs_a_method_that_sweeps() -> None:
    with pytest.raises(
        ValueError, match=r"^allocate='error' chooses the density of each matrix and conflicts"
    ):
        prune_(build(), "wanda", data=batches(1), sparsity=0.5, granularity="head", allocate="error")
