"""Models that ``fuse_`` refuses, unchanged, with a reason."""

from __future__ import annotations

import pytest
from torch import nn

from sparsebert import fuse_
from tests.fuse.models import MARKS, Adapted, make, modern_config
from tests.sparsify.models import WIDTH, build

transformers = pytest.importorskip("transformers")
pytestmark = MARKS


def refused(model: nn.Module, message: str) -> None:
    classes = [type(module) for module in model.modules()]
    with pytest.raises(ValueError, match=message):
        fuse_(model)
    assert [type(module) for module in model.modules()] == classes


def test_a_model_of_another_family() -> None:
    config = transformers.GPT2Config(n_layer=1, n_embd=24, n_head=3, vocab_size=50)
    refused(transformers.GPT2Model(config), "GPT2Model has no encoder of these families")


def test_a_model_that_only_looks_like_bert() -> None:
    model = transformers.MegatronBertModel(transformers.MegatronBertConfig(**WIDTH))
    refused(model, "MegatronBertModel has no encoder")


def test_sparse_attention() -> None:
    config = transformers.BigBirdConfig(**WIDTH, attention_type="original_full")
    refused(transformers.BigBirdModel(config), "BigBirdModel has no encoder")


def test_cross_attention() -> None:
    config = transformers.BertConfig(**WIDTH, is_decoder=True, add_cross_attention=True)
    refused(transformers.BertModel(config), "layer 0 of BertEncoder cannot be fused")


def test_embeddings_of_relative_positions() -> None:
    """As ``relative_key`` had them; a module that the family lacks."""
    model = build("BertModel")
    model.encoder.layer[1].attention.self.distance_embedding = nn.Embedding(63, 8)
    refused(model, "layer 1 of BertEncoder cannot be fused: Embedding is not part of its family")


def test_a_subclass() -> None:
    class Scaled(transformers.ModernBertModel):
        pass

    refused(Scaled(modern_config()), "Scaled has no encoder of these families")


def test_a_decoder() -> None:
    model = transformers.BertModel(transformers.BertConfig(**WIDTH, is_decoder=True))
    refused(model, "layer 0 of BertEncoder cannot be fused: the model is a decoder")


def test_an_unknown_activation() -> None:
    model = transformers.BertModel(transformers.BertConfig(**WIDTH, hidden_act="silu"))
    refused(model, "SiLUActivation is none of relu, gelu, gelu_tanh")


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("BertModel", "encoder.layer.1.output.dense"),
        ("MPNetModel", "encoder.layer.1.attention.attn.q"),
        ("ModernBertModel", "layers.1.attn.Wqkv"),
    ],
)
def test_an_adapter(name: str, path: str) -> None:
    model = make(name)
    model.set_submodule(path, Adapted(model.get_submodule(path)))
    refused(model, "layer 1 of .* cannot be fused")
