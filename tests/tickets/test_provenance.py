"""Provenance: the hash of a model's weights and what metadata say of a model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from sparsebert.tickets.provenance import describe_model, weight_hash
from tests.tickets.models import bert


def test_the_weight_hash_is_that_of_the_encoder_in_its_dtype() -> None:
    expected = weight_hash(bert("BertModel"))
    compiled: Any = torch.compile(bert())
    assert expected.startswith("sha256:")
    assert weight_hash(bert("BertForSequenceClassification")) == weight_hash(compiled) == expected
    assert weight_hash(bert("BertModel").bfloat16()) != expected
    model = bert("BertModel")
    nn.init.zeros_(model.pooler.dense.weight)
    assert weight_hash(model) == expected
    nn.init.zeros_(model.encoder.layer[0].output.dense.weight)
    assert weight_hash(model) != expected


@pytest.mark.parametrize(
    ("name", "described"),
    [
        ("google/bert", {"id": "google/bert", "local": False}),
        ("bert-base-uncased", {"id": "bert-base-uncased", "local": False}),
        ("/some/where/my-bert", {"id": "my-bert", "local": True}),
        ("", {}),
    ],
)
def test_models_are_described_by_id_and_folders_by_their_name_alone(
    name: str, described: dict[str, Any]
) -> None:
    model = bert("BertModel")
    model.config._name_or_path = name
    assert describe_model(model) == {"class": "BertModel", "linears": 12, "heads": 2, **described}


def test_a_folder_here_is_local_even_if_its_name_could_be_an_id(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "my-bert").mkdir()
    monkeypatch.chdir(tmp_path)
    model = bert("BertModel")
    model.config._name_or_path = "my-bert"
    assert describe_model(model)["local"] is True


def test_other_models_are_described_by_their_class() -> None:
    assert describe_model(nn.Linear(2, 2)) == {"class": "Linear"}
