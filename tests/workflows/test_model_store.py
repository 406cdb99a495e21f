"""A stored model is the pruned one again, and takes the space of what it changed."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch

from sparsebert import prune_
from sparsebert.workflows.model_store import ModelStore
from tests.one_shot.test_prune_in_place import batches, bert

transformers = pytest.importorskip("transformers")


def classifier() -> Any:
    return bert(transformers.BertForSequenceClassification)


@pytest.mark.parametrize(("make", "granularity"), [(bert, "element"), (bert, "neuron"), (classifier, "4x1")])
def test_a_stored_model_is_exactly_the_pruned_one(make: Any, granularity: str, tmp_path: Path) -> None:
    dense = make()
    model = copy.deepcopy(dense)
    method = "ziplm" if granularity == "neuron" else "sparsegpt"
    ticket = prune_(model, method, sparsity=0.5, granularity=granularity, data=batches(2))
    store = ModelStore(dense, tmp_path / "model")
    assert store.load() is None
    store.save(model, ticket)
    stored = ModelStore(dense, tmp_path / "model").load()
    assert stored is not None
    again, masks = stored
    state = again.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert masks == ticket


def test_pruned_weights_and_what_did_not_change_take_no_space(tmp_path: Path) -> None:
    dense = bert(vocab_size=5000)
    model = copy.deepcopy(dense)
    ticket = prune_(model, "wanda", sparsity=0.75, data=batches(1))
    ModelStore(dense, tmp_path / "model").save(model, ticket)
    kept = sum(int(mask.sum()) for mask in ticket.masks.values())
    assert (tmp_path / "model.safetensors").stat().st_size < 4 * kept + 8192


def test_a_half_written_model_is_made_again(tmp_path: Path) -> None:
    dense = bert()
    model = copy.deepcopy(dense)
    store = ModelStore(dense, tmp_path / "model")
    store.save(model, prune_(model, "wanda", sparsity=0.5, data=batches(1)))
    (tmp_path / "model.ticket.safetensors").unlink()
    assert store.load() is None
