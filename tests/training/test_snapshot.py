"""Snapshots are copies, and rewinding to one is exact to the bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from sparsebert.training.snapshot import Snapshot, fresh_head, head_names

transformers = pytest.importorskip("transformers")


def bert(head: str = "BertForSequenceClassification") -> Any:
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=30, hidden_size=16, num_attention_heads=2, intermediate_size=24, num_hidden_layers=1
    )
    return getattr(transformers, head)(config)


def train_(model: Any) -> None:
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter))


@pytest.mark.parametrize("head", ["BertForSequenceClassification", "BertForMaskedLM", "BertModel"])
def test_training_does_not_touch_it_and_restoring_is_exact(head: str) -> None:
    model = bert(head)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    start = Snapshot.of(model)
    train_(model)
    assert not torch.equal(
        model.state_dict()[min(before, key=len)], before[min(before, key=len)]
    )  # as an aliased state_dict would be
    with pytest.raises(RuntimeError, match=r"rewinding failed: .*embeddings"):
        start.require_equal(model)
    start.restore_(model)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_one_bit_is_a_difference() -> None:
    model = bert()
    start = Snapshot.of(model)
    with torch.no_grad():
        bits = model.classifier.bias.view(torch.int32)
        bits[1] ^= 1
    with pytest.raises(RuntimeError, match=r"classifier\.bias differs from its snapshot"):
        start.require_equal(model)


def test_nan_equals_itself_and_signed_zeros_differ() -> None:
    model = bert()
    with torch.no_grad():
        model.classifier.bias.fill_(float("nan"))
    Snapshot.of(model).require_equal(model)
    with torch.no_grad():
        model.classifier.bias.zero_()
        start = Snapshot.of(model)
        model.classifier.bias.neg_()
    with pytest.raises(RuntimeError, match="rewinding failed"):
        start.require_equal(model)


def test_only_some_names_are_restored() -> None:
    model = bert()
    start = Snapshot.of(model)
    train_(model)
    trained = Snapshot.of(model)
    head = head_names(model)
    assert head == ["classifier.weight", "classifier.bias"]
    start.restore_(model, [name for name in start.tensors if name not in head])
    trained.require_equal(model, head)
    assert not torch.equal(start.tensors["classifier.weight"], model.classifier.weight)


def test_a_tied_decoder_is_there_once_and_belongs_to_the_base() -> None:
    model = bert("BertForMaskedLM")
    assert "cls.predictions.decoder.weight" not in Snapshot.of(model).tensors
    assert "cls.predictions.transform.dense.weight" in head_names(model)
    assert not any("decoder.weight" in name for name in head_names(model))


def test_the_file_holds_the_same_bits(tmp_path: Path) -> None:
    model = bert("BertForMaskedLM")
    start = Snapshot.of(model)
    start.save(tmp_path / "start.safetensors")
    train_(model)
    Snapshot.load(tmp_path / "start.safetensors").restore_(model)
    start.require_equal(model)
    assert [path.name for path in tmp_path.iterdir()] == ["start.safetensors"]


def test_a_fresh_head_depends_on_the_seed_alone() -> None:
    model = bert()
    state = torch.get_rng_state()
    heads = [fresh_head(model, seed).tensors["classifier.weight"] for seed in (1, 1, 2)]
    assert torch.equal(heads[0], heads[1])
    assert not torch.equal(heads[0], heads[2])
    assert not torch.equal(heads[0], model.classifier.weight)
    assert torch.equal(torch.get_rng_state(), state)


def test_a_bare_model_has_no_head() -> None:
    assert head_names(bert("BertModel")) == []
