"""``prune_`` removes heads and neurons: columns of the matrix that reads them, and rows that feed them."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor

from sparsebert import prune_
from sparsebert.bert import structure, weight_of
from sparsebert.compact import compact_
from sparsebert.one_shot import FisherUnits, ZipLM
from tests.architectures import build as build_any
from tests.pruning.gated_models import FAMILIES, HEAD, HEADS, NEURONS, batches, build, logits


def units_of(mask: Tensor, width: int) -> Tensor:
    """The units of whole columns that a mask keeps."""
    units = mask.unflatten(1, (-1, width))
    assert torch.equal(units, units[:1, :, :1].expand_as(units))
    return units[0, :, 0]


@pytest.mark.parametrize("reproduce", ["dense", "layer"])
@pytest.mark.parametrize("family", FAMILIES)
def test_every_layer_loses_the_same_share_and_compacts_exactly(family: str, reproduce: str) -> None:
    model = build(family).eval()
    options = {"granularity": "head+neuron", "reproduce": reproduce, "allocate": "uniform"}
    ticket = prune_(model, "ziplm", data=batches(6), sparsity=0.5, **options)
    encoder = structure(model)
    for query, key, value, output in encoder.heads:
        heads = units_of(ticket.masks[output], HEAD)
        assert int(heads.sum()) == HEADS // 2
        for source in (query, key, value):
            assert torch.equal(units_of(ticket.masks[source].t(), HEAD), heads)
    for up, down in encoder.neurons:
        neurons = units_of(ticket.masks[down], 1)
        assert int(neurons.sum()) == NEURONS // 2
        assert torch.equal(units_of(ticket.masks[up].t(), 1), neurons)
    for key, mask in ticket.masks.items():
        assert not weight_of(model, key)[~mask].any()
    assert ticket.sparsity == 0.5
    assert set(ticket.metadata["errors"]) == {keys[-1] for keys in (*encoder.heads, *encoder.neurons)}
    compacted = compact_(copy.deepcopy(model), ticket)
    torch.testing.assert_close(logits(compacted), logits(model), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("reproduce", ["dense", "layer"])
def test_compensated_units_lose_less_than_the_mask_alone(reproduce: str) -> None:
    model = build(dropout=0.0).eval()
    pruned, masked = copy.deepcopy(model), copy.deepcopy(model)
    data = batches(40)
    options = {"granularity": "neuron", "reproduce": reproduce, "allocate": "uniform"}
    ticket = prune_(pruned, "ziplm", data=data, sparsity=0.3, **options)
    with pytest.warns(UserWarning, match="ziplm changed the weights"):
        ticket.apply_(masked)
    changes = [float((logits(each) - logits(model)).norm()) for each in (pruned, masked)]
    assert changes[0] < 0.5 * changes[1]


def test_only_neurons_or_only_heads() -> None:
    for granularity, kind in (("neuron", "neurons"), ("head", "heads")):
        model = build()
        ticket = prune_(model, "ziplm", data=batches(2), sparsity=0.5, granularity=granularity)
        assert set(ticket.masks) == {key for keys in getattr(structure(model), kind) for key in keys}


def test_densities_of_single_layers() -> None:
    model = build()
    down = structure(model).neurons[1][-1]
    ticket = prune_(
        model, "ziplm", data=batches(2), sparsity=0.5, densities={down: 0.25}, granularity="neuron"
    )
    kept = [int(units_of(ticket.masks[keys[-1]], 1).sum()) for keys in structure(model).neurons]
    assert kept == [NEURONS // 2, NEURONS // 4, NEURONS // 2]


@pytest.mark.parametrize("method", ["sparsegpt", "wanda"])
def test_other_methods_choose_columns_too(method: str) -> None:
    model = build()
    ticket = prune_(model, method, data=batches(2), sparsity=0.5, granularity="head+neuron")
    assert ticket.sparsity == 0.5
    for _, down in structure(model).neurons:
        assert int(units_of(ticket.masks[down], 1).sum()) == NEURONS // 2


@pytest.mark.parametrize("method", [ZipLM(), FisherUnits(probes=1)], ids=["ziplm", "fisher-units"])
@pytest.mark.parametrize("name", ["MPNetModel", "ModernBertModel"])
def test_models_whose_units_are_found_by_running_them(name: str, method: Any) -> None:
    model = build_any(name)
    generator = torch.Generator().manual_seed(0)
    data = [{"input_ids": torch.randint(3, 100, (4, 9), generator=generator)} for _ in range(3)]
    ticket = prune_(model, method, data=data, sparsity=0.5, granularity="neuron")
    assert 0.5 <= ticket.sparsity < 0.52
    for key, mask in ticket.masks.items():
        assert not weight_of(model, key)[~mask].any()
    assert model(**data[0]).last_hidden_state.isfinite().all()


@pytest.mark.parametrize("granularity", ["element", "4x1", "row"])
def test_ziplm_says_which_granularities_it_prunes(granularity: str) -> None:
    model = build()
    with pytest.raises(ValueError, match=r"^ziplm removes whole columns: use granularity neuron, head,"):
        prune_(model, "ziplm", data=batches(1), sparsity=0.5, granularity=granularity)
