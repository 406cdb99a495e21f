"""A sparse folder in another class of its architecture loads as the dense folder does."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from sparsebert import densify_, prune, sparsify_
from tests.architectures import build
from tests.hf.folders import edit_config
from tests.hf.test_architectures import prune_
from tests.sparsify.models import answers, sparse_layers
from tests.sparsify.models import build as build_bert

transformers = pytest.importorskip("transformers")

# Family, saved class (None for the family's base model), class to load into.
PAIRS = [
    ("AlbertModel", "AlbertForSequenceClassification", "AlbertModel"),
    ("AlbertModel", "AlbertForSequenceClassification", "AlbertForQuestionAnswering"),
    ("AlbertModel", None, "AlbertForMaskedLM"),
    ("MPNetModel", "MPNetForSequenceClassification", "MPNetModel"),
    ("MPNetModel", None, "MPNetForTokenClassification"),
    ("DebertaV2Model", "DebertaV2ForSequenceClassification", "DebertaV2Model"),
    ("DebertaV2Model", None, "DebertaV2ForQuestionAnswering"),
    ("ModernBertModel", "ModernBertForSequenceClassification", "ModernBertModel"),
    ("MegatronBertModel", "MegatronBertForSequenceClassification", "MegatronBertModel"),
    ("ViTModel", "ViTForImageClassification", "ViTModel"),
    ("ViTModel", None, "ViTForImageClassification"),
    ("GteModel", None, "GteForSequenceClassification"),
    ("LlamaModel", None, "LlamaForCausalLM"),
    ("T5Model", None, "T5EncoderModel"),
    ("CLIPModel", None, "CLIPTextModel"),
    ("CLIPModel", None, "CLIPVisionModel"),
    ("CLIPModel", None, "CLIPTextModelWithProjection"),
    ("SiglipModel", None, "SiglipVisionModel"),
]
# The pooler's ticket, in classes with and without a pooler.
HEADS = ("TokenClassification", "QuestionAnswering", "MaskedLM", "SequenceClassification")


def both(folder: Path, cls: Any) -> tuple[Any, Any, set[str]]:
    """Return the class loaded from the sparse and from the dense folder, and the tensors that are new."""
    sparse, loading = cls.from_pretrained(folder / "sparse", output_loading_info=True)
    dense, expected = cls.from_pretrained(folder / "dense", output_loading_info=True)
    new = {*loading["missing_keys"]}
    assert new == {*expected["missing_keys"]}
    return sparse, dense, new


def require_same(mine: Any, other: Any, new: set[str]) -> None:
    tensors, others = mine.state_dict(), other.state_dict()
    assert tensors.keys() == others.keys()
    assert not [name for name in tensors if name not in new and not torch.equal(tensors[name], others[name])]


@pytest.mark.parametrize(("family", "saved", "loaded"), PAIRS)
def test_as_the_dense_folder(family: str, saved: str | None, loaded: str, tmp_path: Path) -> None:
    model = build(family, saved)
    prune_(model)
    model.save_pretrained(tmp_path / "dense")
    sparsify_(model, format="element", fuse_qkv=False, compact=False)
    model.save_pretrained(tmp_path / "sparse")
    sparse, dense, new = both(tmp_path, getattr(transformers, loaded))
    assert sparse_layers(sparse)
    require_same(sparse, dense, new)
    densify_(sparse).save_pretrained(tmp_path / "again")
    assert "sparsebert" not in (tmp_path / "again" / "config.json").read_text()
    require_same(type(sparse).from_pretrained(tmp_path / "again"), sparse, set())


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("saved", ["BertModel", "BertForSequenceClassification"])
def test_a_ticket_of_the_pooler(saved: str, head: str, tmp_path: Path) -> None:
    model = build_bert(saved)
    ticket = prune(model, "magnitude", sparsity=0.7, include_pooler=True)
    assert "pooler.dense" in ticket.masks
    ticket.apply_(model).save_pretrained(tmp_path / "dense")
    sparsify_(model, ticket, format="element").save_pretrained(tmp_path / "sparse")
    sparse, dense, new = both(tmp_path, getattr(transformers, f"BertFor{head}"))
    assert len(sparse_layers(sparse)) == 13 - (head != "SequenceClassification")
    require_same(sparse, dense, new)


def test_a_part_is_saved_again(tmp_path: Path) -> None:
    model = build("CLIPModel")
    prune_(model)
    sparsify_(model, format="element").save_pretrained(tmp_path / "whole")
    part = transformers.CLIPTextModel.from_pretrained(tmp_path / "whole")
    part.save_pretrained(tmp_path / "part")
    again = transformers.CLIPTextModel.from_pretrained(tmp_path / "part")
    assert all(map(torch.equal, answers(again), answers(part)))
    written = json.loads((tmp_path / "part" / "config.json").read_text())["quantization_config"]
    assert written["layers"].keys() == sparse_layers(part).keys()


def test_a_part_without_a_sparse_layer(tmp_path: Path) -> None:
    model = build("CLIPModel")
    prune_(model)
    sparsify_(model, filter=lambda name, _: "text_model.encoder" in name, format="element")
    model.save_pretrained(tmp_path / "whole")
    part = transformers.CLIPVisionModel.from_pretrained(tmp_path / "whole")
    assert not sparse_layers(part)
    for name, tensor in model.vision_model.state_dict().items():
        assert torch.equal(part.state_dict()[name], tensor)


def test_masks_of_layers_that_the_class_lacks_are_checked_too(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    model = build_bert("BertModel")
    ticket = prune(model, "magnitude", sparsity=0.7, include_pooler=True)
    sparsify_(model, ticket, format="element").save_pretrained(tmp_path)
    file = tmp_path / "sparsebert.safetensors"
    tensors = load_file(file)
    tensors["pooler.dense.weight_bits"] = tensors["pooler.dense.weight_bits"].flip(0)
    save_file(tensors, file, metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"the masks do not match config\.json"):
        transformers.BertForTokenClassification.from_pretrained(tmp_path)


@pytest.mark.parametrize("cls", ["AlbertModel", "AlbertForSequenceClassification", "AlbertForMaskedLM"])
def test_a_layer_that_no_class_has(cls: str, tmp_path: Path) -> None:
    model = build("AlbertModel", "AlbertForSequenceClassification")
    prune_(model)
    sparsify_(model, format="element").save_pretrained(tmp_path)

    def rename(config: dict[str, Any]) -> None:
        layers = config["quantization_config"]["layers"]
        layers["albert.other"] = layers.pop("albert.pooler")

    edit_config(tmp_path, rename)
    expected = "config.json does not fit the folder's layers: AlbertForSequenceClassification has no module"
    with pytest.raises(ValueError, match=expected):
        getattr(transformers, cls).from_pretrained(tmp_path)


def test_a_head_of_another_size(tmp_path: Path) -> None:
    """It is not said to be of another architecture."""
    model = build("AlbertModel", "AlbertForSequenceClassification")
    prune_(model)
    sparsify_(model, format="element").save_pretrained(tmp_path)
    cls = transformers.AlbertForSequenceClassification
    with pytest.raises(ValueError, match=r"its classifier is \[2, 64\] with a bias, that of the class with"):
        cls.from_pretrained(tmp_path, num_labels=5)


def test_a_part_whose_tensors_transformers_does_not_find(tmp_path: Path) -> None:
    """Of a dense folder, transformers makes up all weights."""
    model = build("BlipModel")
    prune_(model)
    sparsify_(model, format="element").save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="the folder holds no tensor of a BlipVisionModel"):
        transformers.BlipVisionModel.from_pretrained(tmp_path)


def test_a_layer_in_two_places(tmp_path: Path) -> None:
    model = build("LlamaModel")
    prune_(model)
    sparsify_(model, format="element")
    model.layers[1].mlp.up_proj = model.layers[0].mlp.up_proj
    model.save_pretrained(tmp_path)
    loaded = type(model).from_pretrained(tmp_path)
    assert all(map(torch.equal, answers(loaded), answers(model)))
